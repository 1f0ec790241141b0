"""Pages of mapped files leave this process's memory, and are read again where they are needed."""

import ctypes
import mmap
import os
import time
from pathlib import Path

import pytest

from intel_ft.export import paged_out as module
from intel_ft.export.paged_out import paged_out

LARGE = 2**20


def _mapped(file: Path) -> mmap.mmap:
    file.write_bytes(bytes(range(256)) * 2**14)  # 4 MiB
    with file.open("rb") as opened:
        os.fsync(opened.fileno())  # a dirty page has to be written first
        return mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)


@pytest.mark.parametrize("large", (LARGE, 2**23))
def test_pages_of_these_files_are_given_back_while_python_is_locked(tmp_path, large: int) -> None:
    files = [tmp_path / "model" / "weights of a model.bin", tmp_path / "other.bin"]
    files[0].parent.mkdir()
    mapped = [_mapped(file) for file in files]
    before = [bytes(one) for one in mapped]
    locked = ctypes.PyDLL(None).usleep  # PyDLL keeps Python's lock, as OpenVINO does
    with paged_out(tmp_path / "model", large):
        for _ in range(100):
            locked(100_000)
            weights, other = map(_resident_kib, files)
            if weights == 0 or large > LARGE:
                break
    assert other == 4096 and weights == (0 if large == LARGE else 4096)
    assert [bytes(one) for one in mapped] == before
    time.sleep(0.3)
    assert _resident_kib(files[0]) == 4096  # it has ended with the block


def test_without_a_compiler_the_pages_stay(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(module, "_library", module._library.__wrapped__)
    mapped = _mapped(tmp_path / "weights.bin")
    caplog.set_level("INFO")
    with paged_out(tmp_path, LARGE):
        assert len(bytes(mapped)) == 2**22
    assert "no C++ compiler" in caplog.text


def _resident_kib(file: Path) -> int:
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(str(file)))
    return next(int(line.split()[1]) for line in lines[start:] if line.startswith("Rss:"))
