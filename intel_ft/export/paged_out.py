"""Keep the pages of a large model's files out of this process's memory while it is converted."""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from intel_ft.kernels.build import compile_library

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_suffix(".cpp")
_MILLISECONDS = 200
_LARGE = 2**26  # bytes of a mapping


@contextmanager
def paged_out(folder: Path, large: int = _LARGE) -> Iterator[None]:
    """While the block runs, page out again and again what is mapped of the files in `folder`.

    A conversion reads each weight once or twice, but what it has read stays in its resident memory,
    which grows by the whole model. The kernel takes such pages back only when memory is short.
    Files and mappings below `large` bytes stay, and so do all where no C++ compiler is installed.
    """
    files = [path.resolve() for path in folder.iterdir() if path.stat().st_size >= large]
    library = _library() if files else None
    if library is None:
        yield
        return
    paths = "\n".join(map(str, files)).encode()
    pager = ctypes.c_void_p(library.start_page_out(paths, large, _MILLISECONDS))
    try:
        yield
    finally:
        library.stop_page_out(pager)


@cache
def _library() -> ctypes.CDLL | None:
    built = compile_library("page-out", (_SOURCE,))
    if built.library is None:
        logger.info("resident memory will include the mapped files: %s", built.reason)
        return None
    built.library.start_page_out.restype = ctypes.c_void_p
    built.library.start_page_out.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64)
    return built.library
