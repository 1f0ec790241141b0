"""Facts of the instruction set: what the CPU advertises, what Linux permits, expected rates."""

import os
from dataclasses import dataclass
from pathlib import Path

from intel_ft.doctor.host import Host
from intel_ft.host import cpu
from intel_ft.host.amx import tile_permission

_ADVERTISED = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
)
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")

REACHED = 0.5
"""Fraction of the peak at base clock that GEMMs should reach, as in planner.hardware."""

# Operations per core and cycle. AMX: Intel's 4th Gen Xeon brief. Others: two 512-bit (AVX2:
# 256-bit) multiply-add units (Intel's Optimization Reference Manual, instruction throughput).
_OPERATIONS = {
    "bfloat16": {"amx_bf16": 1024, "avx512_bf16": 128},
    "int8": {"amx_int8": 2048, "avx512_vnni": 256, "avx_vnni": 128},
    "float32": {"avx512f": 64, "fma": 32},
}
_ZEN_4 = ("AuthenticAMD", 25)  # executes 512-bit instructions in two halves (AMD's guide 57647)


@dataclass(frozen=True)
class Instructions:
    """Instruction sets for GEMMs.

    `advertised`: the CPU's flags that GEMMs can use. `tiles`: "granted" if Linux lets this process
    use AMX tiles, else the reason; None if the CPU has no AMX. `limits`: environment variables that
    restrict the instruction set.
    """

    advertised: tuple[str, ...]
    tiles: str | None
    limits: dict[str, str]


def read(root: Path = Path("/")) -> Instructions:
    """The facts of this process; `root` has the /proc of the machine."""
    flags = cpu.cpu_flags(root)
    return Instructions(
        advertised=tuple(flag for flag in _ADVERTISED if flag in flags),
        tiles=tile_permission() if "amx_tile" in flags else None,
        limits={name: os.environ[name] for name in _LIMITS if os.environ.get(name)},
    )


def best(dtype: str, advertised: tuple[str, ...]) -> str | None:
    """The fastest advertised instruction set for GEMMs in this dtype; None if there is none."""
    return next((flag for flag in _OPERATIONS[dtype] if flag in advertised), None)


def expected(dtype: str, advertised: tuple[str, ...], machine: Host, threads: int) -> float | None:
    """Operations per second to expect from `threads` cores: REACHED of the peak at base clock.

    None if the CPU has no instructions for this dtype, or if its clock is unknown.
    """
    flag = best(dtype, advertised)
    clock = machine.clock.base or machine.clock.now
    if flag is None or clock is None:
        return None
    per_cycle = _OPERATIONS[dtype][flag]
    if flag.startswith("avx512") and (machine.vendor, machine.family) == _ZEN_4:
        per_cycle //= 2
    return REACHED * min(threads, machine.usable) * clock * 1e9 * per_cycle


def uses(kernel: str, flag: str) -> bool:
    """Whether a kernel uses the instructions of `flag` or better ones.

    kernel: its name in oneDNN's report, such as brg_matmul:avx512_core_bf16.
    """
    marks = {
        "amx_bf16": ("amx",),
        "amx_int8": ("amx",),
        "avx512_bf16": ("core_bf16", "core_fp16", "amx", "avx10"),
        "avx512_vnni": ("vnni", "core_bf16", "core_fp16", "amx", "avx10"),
        "avx_vnni": ("vnni", "core_bf16", "core_fp16", "amx", "avx10"),
    }
    return any(mark in kernel for mark in marks.get(flag, ("avx", "amx")))
