"""The cache of prepared bases: found again, bounded, never wrong, not in the way if it fails."""

import os
import threading
from pathlib import Path

import pytest
import torch

from intel_ft.errors import UserError
from intel_ft.models import base_cache
from intel_ft.models.base_cache import LIMIT, NoCache, cache_folder, cached

MIB = 2**20


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_folder()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def prepared(facts, value=1.0, size=MIB):
    """The weight that the cache has under these facts, and whether it was made now."""
    made = []
    with cached(facts, size) as keep:
        weight = keep("weight", lambda: made.append(1) or torch.full((MIB // 4,), value))
    return keep, weight, bool(made)


def close(keep):
    """End the use of a base, as the end of the process does."""
    os.close(keep.descriptor)


def test_a_base_is_made_once_for_the_same_facts(folder) -> None:
    keep, _, made = prepared({"base": 1}, 3.0)
    assert made and keep.failed is None
    assert len(files(folder)) == 1
    _, weight, made = prepared({"base": 1}, 4.0)
    assert not made and weight[0] == 3
    _, weight, made = prepared({"base": 2}, 4.0)
    assert made and weight[0] == 4


def test_a_file_that_does_not_match_its_name_is_replaced(folder) -> None:
    close(prepared({"base": 1}, 3.0)[0])
    close(prepared({"base": 2}, 4.0)[0])
    one, two = (folder / name for name in files(folder))
    one.write_bytes(two.read_bytes())
    weights = [prepared({"base": n}, 5.0 + n) for n in (1, 2)]
    assert sorted(made for _, _, made in weights) == [False, True]
    assert {float(weight[0]) for _, weight, _ in weights} in ({6.0, 4.0}, {3.0, 7.0})


def test_a_damaged_file_is_replaced(folder, caplog) -> None:
    close(prepared({"base": 1}, 3.0)[0])
    [path] = folder.glob("*.base")
    for place, damage in ((MIB // 3, b"x"), (-9, b"x"), (0, None)):  # of a weight, of the index
        content = bytearray(path.read_bytes())
        if damage is None:
            path.write_bytes(content[:-4096])
        else:
            content[place : place + 1 or None] = damage
            path.write_bytes(content)
        keep, weight, made = prepared({"base": 1}, 4.0)
        close(keep)
        assert made and weight.unique().tolist() == [4.0]
        assert not prepared({"base": 1}, 5.0)[2]
    assert f"{path} is damaged: the base is prepared again" in caplog.text


def test_what_a_killed_process_left_is_removed(folder) -> None:
    close(prepared({"base": 1})[0])
    left = folder / ".0123456789abcdef.base.partial"
    left.write_bytes(b"half of it")
    assert not prepared({"base": 1})[2]
    assert not left.exists()


def test_an_error_leaves_no_file_and_is_raised(folder) -> None:
    with pytest.raises(OSError, match="of the model"), cached({"base": 1}, MIB) as keep:
        keep("weight", lambda: torch.ones(3))
        raise OSError("of the model")
    assert files(folder) == []
    assert prepared({"base": 1})[2]


def test_the_oldest_go_first_and_never_one_in_use(folder, monkeypatch) -> None:
    monkeypatch.setenv(LIMIT, str(3.5 / 1024))  # three of them
    in_use = prepared({"base": 0})[0]
    for base in (1, 2):
        close(prepared({"base": base})[0])
    for name in files(folder):
        os.utime(folder / name, ns=(1, 1))
    name = Path(f"/proc/self/fd/{in_use.descriptor}").readlink().name
    os.utime(folder / name, ns=(0, 0))
    close(prepared({"base": 2})[0])  # used now, so that 1 is the oldest that nobody uses
    close(prepared({"base": 3})[0])
    assert [prepared({"base": base})[2] for base in (0, 2, 3)] == [False] * 3
    with pytest.raises(NoCache, match=r"in use, INTEL_FT_BASE_CACHE_GIB is 0\.003"):
        prepared({"base": 4})
    close(in_use)


def test_a_base_that_cannot_fit_is_refused_before_it_is_made(monkeypatch) -> None:
    monkeypatch.setenv(LIMIT, "1")
    with pytest.raises(NoCache, match=r"2\.0 GiB are more than INTEL_FT_BASE_CACHE_GIB allows"):
        prepared({"base": 1}, size=2 * 2**30)
    monkeypatch.setattr(base_cache, "_free", lambda _: MIB - 1)
    with pytest.raises(NoCache, match=r"no room for 0\.0 GiB: the disk is full"):
        prepared({"base": 1})
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(UserError, match="INTEL_FT_BASE_CACHE_GIB=much: a number of GiB"):
        prepared({"base": 1})


def test_a_disk_that_fills_up_leaves_the_weights_and_no_file(folder, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(base_cache.os, "fsync", full)
    keep, weight, _ = prepared({"base": 1}, 3.0)
    assert keep.failed == "No space left on device" and weight[0] == 3
    assert files(folder) == []


def test_a_folder_that_cannot_be_made_is_named(folder, monkeypatch) -> None:
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file")
    with pytest.raises(NoCache, match=f"{folder} cannot be written to"):
        prepared({"base": 1})


def test_of_two_at_once_one_makes_it_and_the_other_waits() -> None:
    found, made = [], []

    def use():
        with cached({"base": 1}, MIB) as keep:
            found.append(keep("weight", lambda: made.append(1) or torch.ones(5)))

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and torch.equal(*found)
