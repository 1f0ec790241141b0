"""The compiled products, and which of them this process can use."""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from intel_ft.host.amx import tile_permission
from intel_ft.host.cpu import amx_limit, cpu_flags, vnni_limit
from intel_ft.kernels.build import DISABLE, Kernels, c_value, compile_library

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
_AVX512 = {"avx512f", "avx512bw", "avx512vl"}


@cache
def library() -> Kernels:
    """The library, compiled now or taken from the cache. Never raises."""
    if os.environ.get(DISABLE):
        return Kernels(None, f"{DISABLE} is set")
    if "fma" not in cpu_flags():
        return Kernels(None, "this is not an x86-64 CPU with FMA")
    return compile_library("gemm", SOURCES)


@cache
def why_no_tiles() -> str | None:
    """Why the products on AMX cannot be used; None if they can."""
    if not {"amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", *_AVX512} <= cpu_flags():
        return "this CPU has no AMX"
    if (limit := amx_limit()) is not None:
        return limit
    if (permission := tile_permission()) != "granted":
        return f"Linux does not permit AMX tiles ({permission})"
    if library().library is None:
        return library().reason
    if not call("tiles_work", returns=ctypes.c_int, threads=False):
        return "a trial of AMX tiles failed"
    return None


@cache
def why_no_vnni() -> str | None:
    """Why the products on AVX512-VNNI cannot be used; None if they can."""
    if not {"avx512_vnni", *_AVX512} <= cpu_flags():
        return "this CPU has no AVX512-VNNI"
    return vnni_limit() or (library().reason if library().library is None else None)


def call(name: str, *arguments: Any, returns: Any = None, threads: bool = True) -> Any:
    """Call a function of the library; most take the number of threads last."""
    function = getattr(library().library, name)
    function.restype = returns
    last = (ctypes.c_int(torch.get_num_threads()),) if threads else ()
    return function(*map(c_value, arguments), *last)
