"""Keep the pages of a large model's files out of this process's memory while it is converted."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4: nothing is lost, pages are read again where needed
_SECONDS = 0.5
_LARGE = 2**26  # bytes of a mapping


@contextmanager
def paged_out(folder: Path) -> Iterator[None]:
    """While the block runs, page out again and again what is mapped of the files in `folder`.

    A conversion reads each weight once or twice, but what it has read stays in its resident memory,
    which grows by the whole model. The kernel takes such pages back only when memory is short.
    """
    files = {str(path.resolve()) for path in folder.iterdir()}
    done = threading.Event()

    def work() -> None:
        while not done.wait(_SECONDS):
            page_out(files)

    thread = threading.Thread(target=work, name="page-out", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def page_out(files: set[str], large: int = _LARGE) -> None:
    """Page out the mappings of at least `large` bytes of `files`, which are absolute paths."""
    libc = ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        span, *_, path = line.split(maxsplit=5)
        if path not in files:
            continue
        start, end = (int(address, 16) for address in span.split("-"))
        if end - start >= large:
            # Where it fails, as on an older kernel, the pages stay.
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGEOUT)
