"""The folder of cached data: complete entries that processes share, of which the oldest go first.

An entry is a folder. Whoever makes it holds its lock alone; whoever uses it shares the lock until
the process ends, so that no other process deletes what is in use.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from intel_ft.errors import EnvironmentProblem
from intel_ft.files import user_cache

DONE = "done.json"
"""The file that an entry has once it is complete."""
_ENTRY = re.compile(r"(?:tokens|url)-[0-9a-f]{16}")  # whatever else is in a user's folder stays
_LOCKS = "locks"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: dict[Path, IO[bytes]] = {}

logger = logging.getLogger(__name__)


def user_folder() -> Path:
    """The folder of cached data in the user's cache folder."""
    return user_cache("data")


def entry_name(kind: str, *parts: str) -> str:
    """The name of an entry: its kind, tokens or url, and a hash of all that it follows from."""
    return f"{kind}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def complete_entry(entry: Path, make: Callable[[], None]) -> None:
    """Use `entry`, which `make` completes first if it is not complete: it writes DONE last.

    Only one process on all hosts that see the folder runs `make`; the others wait. What a process
    that was killed had made is still there. Raises EnvironmentProblem if the folder cannot be used.
    """
    if entry in _held:
        return
    lock = _open_lock(entry)
    try:
        while not _shared(entry, lock):
            _take(lock, fcntl.LOCK_EX, entry)
            if not (entry / DONE).exists():
                entry.mkdir(exist_ok=True)
                make()
        os.utime(entry / DONE)
    except BaseException:
        lock.close()
        raise
    _held[entry] = lock


def delete_oldest(root: Path, limit: float) -> None:
    """Delete the entries that were not used for longest until all take at most `limit` bytes."""
    entries = [path for path in root.iterdir() if path.is_dir() and _ENTRY.fullmatch(path.name)]
    sizes = {entry: _size(entry) for entry in entries}
    total = sum(sizes.values())
    for entry in sorted(entries, key=_last_used):
        if total <= limit:
            return
        if entry in _held:
            continue
        with _open_lock(entry) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # in use
            shutil.rmtree(entry, ignore_errors=True)
        total -= sizes[entry]
        logger.info(
            "deleted %s, %.1f GiB of cached data: least recently used", entry, sizes[entry] / 2**30
        )
    if total > limit:
        logger.warning(
            "%s has %.1f GiB in use, more than data.cache_gib (%.1f)",
            root,
            total / 2**30,
            limit / 2**30,
        )


def _shared(entry: Path, lock: IO[bytes]) -> bool:
    """Whether the entry is complete, and stays so because this process shares its lock."""
    if not (entry / DONE).exists():
        return False
    _take(lock, fcntl.LOCK_SH, entry)
    return (entry / DONE).exists()


def _open_lock(entry: Path) -> IO[bytes]:
    try:
        folder = entry.parent / _LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / entry.name).open("a+b")
    except OSError as error:
        raise EnvironmentProblem(
            f"{entry.parent}: cached data cannot be written there ({error.strerror}): set"
            " data.cache to another folder, or to off"
        ) from error


def _take(lock: IO[bytes], kind: int, entry: Path) -> None:
    try:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process, which is preparing %s", entry)
            fcntl.flock(lock, kind)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise EnvironmentProblem(
            f"{entry.parent}: this filesystem has no locks ({error.strerror}): set data.cache to a"
            " folder on another one, or to off"
        ) from error


def _size(entry: Path) -> int:
    total = 0
    for path in entry.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # deleted meanwhile
    return total


def _last_used(entry: Path) -> float:
    for path in (entry / DONE, entry):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0
