"""How fast this CPU's multiply-add instructions are on registers alone: the silicon's limit."""

import ctypes
from dataclasses import dataclass

import torch

from intel_ft.host import cpu
from intel_ft.kernels.gemm.library import call, library, why_no_tiles

# In the order of register_rate.cpp: name, dtype, the CPU's flag.
_INSTRUCTIONS = (
    ("tdpbf16ps", torch.bfloat16, "amx_bf16"),
    ("tdpbssd", torch.int8, "amx_int8"),
    ("vdpbf16ps", torch.bfloat16, "avx512_bf16"),
    ("vpdpbusd", torch.int8, "avx512_vnni"),
    ("vpdpbusd (256 bits)", torch.int8, "avx_vnni"),
    ("vfmadd", torch.float32, "avx512f"),
    ("vfmadd (256 bits)", torch.float32, "fma"),
)
_WINDOWS = 4  # of which the fastest counts, because other programs may use the cores


@dataclass(frozen=True)
class RegisterRate:
    """Operations per second of one instruction, on as many threads as torch uses."""

    instruction: str
    rate: float


def instruction_of(dtype: torch.dtype) -> str | None:
    """The fastest instruction for this dtype that this process can use, or None."""
    index = _index_of(dtype)
    return None if index is None else _INSTRUCTIONS[index][0]


def register_rate(
    dtype: torch.dtype, seconds: float = 0.2, *, back_to_back: bool = False
) -> RegisterRate | None:
    """Measure the fastest instruction for this dtype, for `seconds` in all.

    back_to_back: AMX's without other instructions between them, which is slower where other work
    runs on a core's second thread. None without an instruction for it, or without the library (see
    `library`).
    """
    index = _index_of(dtype)
    if index is None or library().library is None:
        return None
    window = seconds / _WINDOWS
    rate = max(
        call("register_rate", index, int(back_to_back), window, returns=ctypes.c_double)
        for _ in range(_WINDOWS)
    )
    return RegisterRate(_INSTRUCTIONS[index][0], rate) if rate else None


def _index_of(dtype: torch.dtype) -> int | None:
    flags = cpu.cpu_flags()
    for index, (_, of, flag) in enumerate(_INSTRUCTIONS):
        usable = flag in flags and (not flag.startswith("amx") or why_no_tiles() is None)
        if of == dtype and usable:
            return index
    return None
