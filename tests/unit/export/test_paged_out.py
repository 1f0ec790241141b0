"""Pages of mapped files leave this process's memory, and are read again where they are needed."""

import mmap
import os
import threading
from pathlib import Path

from intel_ft.export.paged_out import page_out, paged_out

NAMES = ("weights", "other")


def test_pages_of_these_files_are_given_back(tmp_path) -> None:
    mapped = []
    for name in NAMES:
        file = tmp_path / f"{name} of a model.bin"
        file.write_bytes(bytes(range(256)) * 2**14)  # 4 MiB
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # a dirty page has to be written first
            mapped.append(mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ))
    before = [bytes(one) for one in mapped]
    page_out({str(tmp_path / "weights of a model.bin")}, large=2**20)
    weights, other = (_resident_kib(tmp_path / f"{name} of a model.bin") for name in NAMES)
    assert weights < 1024 and other == 4096
    assert [bytes(one) for one in mapped] == before
    page_out({str(tmp_path / "weights of a model.bin")}, large=2**23)  # smaller than that
    assert _resident_kib(tmp_path / "weights of a model.bin") == 4096


def test_the_thread_ends_with_the_block(tmp_path) -> None:
    with paged_out(tmp_path):
        assert "page-out" in {thread.name for thread in threading.enumerate()}
    assert "page-out" not in {thread.name for thread in threading.enumerate()}


def _resident_kib(file: Path) -> int:
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(str(file)))
    return next(int(line.split()[1]) for line in lines[start:] if line.startswith("Rss:"))
