"""Allocator and oneDNN cache settings."""

import ctypes
import os
from contextlib import suppress

from intel_ft.decisions import Decision
from intel_ft.host.cpu import cpu_flags

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # mallopt(3)
_LARGE = 4 * 2**20

KERNELS = 64
"""Kernels in oneDNN's cache: more than the some 30 different GEMMs of a packed row."""

AMX_KERNELS = 512
"""The same with AMX: the kernels of all row lengths up to 3840 tokens, 17 per multiple of 128."""


def keep_freed_memory() -> Decision:
    """Have glibc keep freed memory instead of returning it to the system, from now on.

    By default glibc maps each large tensor anew, and the first touch of every page is a page fault.
    A training step allocates the same sizes again and again. Measured in docs/log.md.
    """
    name = "allocator"
    if preloaded := os.environ.get("LD_PRELOAD"):
        return Decision(name, "preloaded", f"LD_PRELOAD is {preloaded}")
    try:
        mallopt = ctypes.CDLL(None).mallopt
        accepted = mallopt(_TRIM_THRESHOLD, -1) and mallopt(_MMAP_MAX, 0)
    except (OSError, AttributeError):
        accepted = 0
    if not accepted:
        return Decision(name, "unchanged", "the C library is not glibc")
    return Decision(name, "glibc, keeps freed memory", "saves page faults, costs some memory")


def return_large_blocks() -> None:
    """Have glibc return freed blocks of 4 MiB and more, in spite of `keep_freed_memory`.

    For sharded weights: they are gathered and freed in sizes that would fragment kept memory.
    """
    with suppress(OSError, AttributeError):  # the C library is not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_MMAP_MAX, 65536)


def release_freed_memory() -> None:
    """Return the pages of freed memory to the system, once, whatever `keep_freed_memory` set."""
    with suppress(OSError, AttributeError):  # the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)


_RELEASE_AFTER = 2**28
"""Bytes of converted weights after which FreedMemory acts."""


class FreedMemory:
    """Returns freed memory to the system now and then, while a model's weights are converted.

    A conversion frees temporaries of several sizes between results that stay, so that kept memory
    fragments: a 7B in int8 took 23 GB where its weights take 7 (docs/log.md).
    """

    def __init__(self) -> None:
        self._converted = 0

    def converted(self, size: int) -> None:
        """Count the bytes of a weight that was converted."""
        self._converted += size
        if self._converted > _RELEASE_AFTER:
            release_freed_memory()
            self._converted = 0


EXPERT_KERNELS = 192
"""More kernels for a mixture of experts: 16 GEMMs for some 12 numbers of rows
(models.experts.padded_rows)."""


def keep_few_kernels(*, mixture: bool = False) -> Decision:
    """Limit the kernel caches of oneDNN and torch. Call it before the first matmul.

    Variables that are already set take precedence. By default each cache keeps 1024 kernels of a
    quarter of a MiB, for every row length that occurred. They accumulate as long as new lengths
    occur, and fragment the memory that large tensors need. With AMX a kernel takes five times as
    long to generate, so more are kept. See docs/log.md.
    """
    number, reason = KERNELS, "each row length needs its own kernels, half a MiB each"
    if "amx_bf16" in cpu_flags():
        number, reason = AMX_KERNELS, "with AMX each kernel takes 2 to 4 ms to generate"
    if mixture:
        number, reason = number + EXPERT_KERNELS, f"{reason}; more for the experts' GEMMs"
    kernels = os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(number))
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # torch's: a second copy of each
    return Decision("kernels kept", kernels, reason)
