"""Pages of files that this process has mapped: which memory they are, and how to let go of it.

A model's weights are pages of its files until they are converted. Called from models.
"""

import ctypes
import mmap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PAGE = mmap.PAGESIZE
_ENTRY = 8  # bytes for each page in /proc/PID/pagemap
_OF_FILE, _SWAPPED, _PRESENT = (np.uint64(1 << bit) for bit in (61, 62, 63))


@dataclass(frozen=True)
class FilePages:
    """The address ranges of this process that are pages of files (proc(5), /proc/PID/maps)."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls) -> "FilePages":
        """The ranges now."""
        ranges = []
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            place, _, _, _, inode, *_ = line.split(maxsplit=5)
            if inode != "0":
                start, end = (int(part, 16) for part in place.split("-"))
                ranges.append((start, end))
        return cls(tuple(ranges))

    def __contains__(self, address: int) -> bool:
        return any(start <= address < end for start, end in self.ranges)

    def drop(self, address: int, size: int) -> None:
        """Take the whole pages among these bytes out of this process's memory, until it reads them.

        They stay in the system's cache of files. Nothing happens to memory that is no file's, or
        that this process has changed, and where the system has no /proc/PID/pagemap.
        """
        start, end = -(-address // _PAGE) * _PAGE, (address + size) // _PAGE * _PAGE
        if start < end and address in self and address + size - 1 in self:
            with suppress(OSError, AttributeError):
                if _unchanged(start, end):
                    place, length = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
                    ctypes.CDLL(None).madvise(place, length, mmap.MADV_DONTNEED)


def _unchanged(start: int, end: int) -> bool:
    """Whether every page that is there is the file's and not this process's changed copy of it."""
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(start // _PAGE * _ENTRY)
        pages = np.frombuffer(pagemap.read((end - start) // _PAGE * _ENTRY), np.uint64)
    there = pages & (_PRESENT | _SWAPPED) != 0
    return len(pages) == (end - start) // _PAGE and bool(np.all(pages[there] & _OF_FILE != 0))
