"""Describes the machine and the software that a benchmark ran on, for its report."""

import os
from typing import Any

from intel_ft.host.cpu import cpu_flags, cpu_name
from intel_ft.host.devices import gpu_name
from intel_ft.versions import installed

_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe(threads: int, backend: str = "cpu") -> dict[str, Any]:
    """CPU, usable cores, instruction sets, package versions, load, and the GPU if one is used."""
    flags = cpu_flags()
    return {
        **({"gpu": gpu_name()} if backend == "cuda" else {}),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": threads,
        "isa": [flag for flag in _ISA if flag in flags],
        "torch": installed("torch"),
        "transformers": installed("transformers"),
        "load": os.getloadavg()[0],
    }
