"""Pages of files leave a process's memory, and nothing that it changed is lost."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from intel_ft.host.file_pages import FilePages

SIZE = 2**20


@pytest.fixture
def mapped(tmp_path) -> torch.Tensor:
    """Numbers on pages of a file, 4 MiB, all of which have been read."""
    path = tmp_path / "weights"
    path.write_bytes(torch.arange(SIZE, dtype=torch.int32).numpy().tobytes())
    values = torch.from_file(str(path), size=SIZE, dtype=torch.int32)
    assert values.sum() == torch.arange(SIZE).sum()
    return values


def resident(values: torch.Tensor) -> int:
    """Bytes of the mapping that `values` begins, as far as they are in memory."""
    text = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^{values.data_ptr():x}-.*?^Rss: +(\d+) kB", text, re.M | re.S)
    return int(found[1]) * 1024


def test_dropped_pages_leave_memory_and_are_read_again_where_needed(mapped) -> None:
    assert resident(mapped) == mapped.nbytes
    FilePages.read().drop(mapped.data_ptr(), mapped.nbytes)
    assert resident(mapped) == 0
    assert torch.equal(mapped, torch.arange(SIZE, dtype=torch.int32))


def test_a_range_without_a_whole_page_is_left_alone(mapped) -> None:
    FilePages.read().drop(mapped.data_ptr() + 4, mmap.PAGESIZE + 8)
    assert resident(mapped) == mapped.nbytes


def test_pages_that_were_changed_stay_as_they_are(mapped) -> None:
    mapped[SIZE // 2] = -1
    FilePages.read().drop(mapped.data_ptr(), mapped.nbytes)
    assert mapped[SIZE // 2] == -1
    assert mapped[SIZE // 2 + 1] == SIZE // 2 + 1


def test_memory_that_is_no_file_is_left_alone() -> None:
    values = torch.ones(SIZE)
    FilePages.read().drop(values.data_ptr(), values.nbytes)
    assert values.sum() == SIZE
