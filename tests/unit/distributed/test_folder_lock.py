"""One writer a folder: who holds it is named, and a lock whose owner has ended is replaced."""

import json
import multiprocessing
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from intel_ft.distributed import folder_lock
from intel_ft.distributed.folder_lock import LOCK, FolderLock, Owner
from intel_ft.distributed.launch.commands import Command
from intel_ft.distributed.launch.supervise import supervise
from intel_ft.errors import IntelFTError, UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT", 0.1)
    monkeypatch.setattr(folder_lock, "STALE", 0.8)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "one"


def _left(run, **changes):
    """A lock that another process left; `changes` to what this one would write."""
    run.mkdir(parents=True, exist_ok=True)
    owner = replace(Owner.this_process(), **changes)
    (run / LOCK).write_text(json.dumps(asdict(owner)))
    return owner


ELSEWHERE = {"host": "node7", "machine": "node7 another boot", "pid": 4711}


def test_the_holder_is_named_and_nothing_changes(run):
    lock = FolderLock.take(run)
    before = (run / LOCK).read_text()
    with pytest.raises(UserError, match="in use") as error:
        FolderLock.take(run)
    assert str(os.getpid()) in str(error.value) and lock._owner.since in str(error.value)
    assert lock._owner.host in str(error.value)
    assert (run / LOCK).read_text() == before
    lock.release()
    FolderLock.take(run).release()


def test_released_it_leaves_no_folder_that_it_created(run, tmp_path):
    FolderLock.take(run).release()
    assert list(tmp_path.iterdir()) == []
    run.mkdir(parents=True)
    FolderLock.take(run).release()
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("pid", [2**22 + 1, os.getpid()], ids=["none", "this"])
def test_a_dead_process_of_this_host_is_replaced_at_once(run, pid, caplog):
    """A pid that no process has, or that another process has now."""
    _left(run, pid=pid, started="12345")
    with caplog.at_level("WARNING"):
        lock = FolderLock.take(run)
    assert "has ended" in caplog.text
    lock.require_held()
    lock.release()


def test_a_silent_process_of_another_host_is_replaced(run, caplog):
    _left(run, **ELSEWHERE)
    with caplog.at_level("WARNING"):
        FolderLock.take(run).release()
    assert "process 4711 on node7" in caplog.text and "did not renew it" in caplog.text


def test_a_process_of_another_host_that_touches_its_lock_is_not(run):
    _left(run, **ELSEWHERE)
    done = threading.Event()

    def beat():
        while not done.wait(0.1):
            os.utime(run / LOCK)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="process 4711 on node7"):
            FolderLock.take(run)
    finally:
        done.set()
        thread.join()


def test_a_holder_touches_its_lock(run):
    lock = FolderLock.take(run)
    lock.keep()
    first = (run / LOCK).stat().st_mtime_ns
    done = threading.Event()
    for _ in range(50):
        if done.wait(0.1) or (run / LOCK).stat().st_mtime_ns != first:
            break
    assert (run / LOCK).stat().st_mtime_ns != first
    lock.release()


def test_who_was_taken_over_writes_no_more_and_leaves_the_lock(run):
    lock = FolderLock.take(run)
    other = _left(run, **ELSEWHERE)
    with pytest.raises(IntelFTError, match="process 4711 on node7 took over"):
        lock.require_held()
    lock.release()
    assert folder_lock._read(run / LOCK) == other


def test_a_deleted_lock_is_written_again(run):
    lock = FolderLock.take(run)
    (run / LOCK).unlink()
    lock.require_held()
    assert folder_lock._read(run / LOCK) == lock._owner
    lock.release()


def test_a_takeover_that_was_killed_halfway_does_not_block(run):
    _left(run, pid=2**22 + 1)
    (run / folder_lock._TAKEOVER).write_text((run / LOCK).read_text())
    FolderLock.take(run).release()
    assert not list(run.iterdir())


def test_a_lock_that_cannot_be_read_is_watched(run):
    run.mkdir(parents=True)
    (run / LOCK).write_text("{")
    FolderLock.take(run).release()
    assert not list(run.iterdir())


def _race(run, barrier, results):
    barrier.wait()
    try:
        FolderLock.take(run)
        results.put("held")
    except UserError as error:
        results.put(str(error))
    results.close()
    results.join_thread()
    barrier.wait()  # held until all have tried
    os._exit(0)


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_several_gets_it(run, stale):
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        if stale:
            _left(run, pid=2**22 + 1)
        barrier, results = context.Barrier(4), context.Queue()
        processes = [context.Process(target=_race, args=(run, barrier, results)) for _ in range(4)]
        for process in processes:
            process.start()
        found = [results.get(timeout=20) for _ in processes]
        for process in processes:
            process.join(20)
        assert found.count("held") == 1, found
        assert sum("in use" in text for text in found) == 3, found
        (run / LOCK).unlink(missing_ok=True)


@pytest.mark.parametrize("path", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_to(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written to .*output\.directory"):
        FolderLock.take(tmp_path / path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        FolderLock.take(tmp_path / "file")


def test_a_second_launcher_of_the_same_run_starts_nothing(tmp_path):
    """Its ranks would report their refusal to the first launcher, which would end its own ranks."""
    logs = tmp_path / "out.logs"
    command = Command(["touch", str(tmp_path / "started")], {}, "a launcher")
    lock = FolderLock.take(logs)
    with pytest.raises(UserError, match="in use"):
        supervise(command, logs)
    assert not (tmp_path / "started").exists()
    lock.release()
    assert supervise(command, logs) == 0
    assert (tmp_path / "started").exists() and not logs.exists()


def test_a_launcher_that_cannot_write_its_logs_starts_nothing(tmp_path):
    command = Command(["touch", str(tmp_path / "started")], {}, "a launcher")
    with pytest.raises(UserError, match="cannot be written to"):
        supervise(command, Path("/proc/out.logs"))
    assert not (tmp_path / "started").exists()
