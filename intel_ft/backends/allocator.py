"""Freed memory is kept for the next use; called from backends.cpu."""

import ctypes
import os

from intel_ft.decisions import Decision

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt(3)


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
