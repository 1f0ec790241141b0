"""What is done with freed memory, and how many kernels are kept; called from backends.cpu."""

import ctypes
import os

from intel_ft.decisions import Decision
from intel_ft.host.cpu import cpu_flags

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3)

KERNELS = 64
"""Prepared products that oneDNN keeps: more than the different ones of a packed row, some 30."""

AMX_KERNELS = 512
"""The same with AMX: those of all rows up to 3840 tokens, 17 for each multiple of 128."""


def keep_freed_memory() -> Decision:
    """Have glibc hand no freed memory back to the system, for the rest of the process.

    By default it maps each large tensor anew, and every first touch of a page is a page fault. A
    training step asks for the same sizes again and again. Measured in docs/log.md.
    """
    name = "allocator"
    if preloaded := os.environ.get("LD_PRELOAD"):
        return Decision(name, "as preloaded", f"LD_PRELOAD is {preloaded}")
    try:
        mallopt = ctypes.CDLL(None).mallopt
        kept = mallopt(_TRIM_THRESHOLD, -1) and mallopt(_MMAP_MAX, 0)
    except (OSError, AttributeError):
        kept = 0
    if not kept:
        return Decision(name, "the system's", "it is not glibc's")
    return Decision(name, "glibc's, keeping freed memory", "page faults cost more than it holds")


def keep_few_kernels() -> Decision:
    """Have oneDNN, and torch beside it, keep the kernels of few lengths of row; to be called before
    the first product, and overruled by the variables themselves.

    Each keeps 1024 by default, a quarter of a MiB each, for every length of row that came by. They
    pile up for as long as new lengths come, and end up in the middle of the memory that large
    tensors would fit into. With AMX one takes five times as long to make, so more are kept. See
    docs/log.md.
    """
    kept, reason = KERNELS, "each length of row brings its own, half a MiB each"
    if "amx_bf16" in cpu_flags():
        kept, reason = AMX_KERNELS, "with AMX each takes 2 to 4 ms to make"
    kernels = os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(kept))
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # torch's: a second copy of each
    return Decision("kernels kept", kernels, reason)
