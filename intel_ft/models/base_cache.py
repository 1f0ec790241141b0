"""Frozen weights of bases in the user's cache, in the layout that multiplies: mapped at once.

One file for each base, layout, CPU and version (`layers.mapped`), under a name that is a hash of
all of them. A file appears under its name when it is whole, and each run that uses it first
compares all of its weights with their hash. The folder is bounded: the files that were not used for
longest are removed, but never one that a process has mapped.
"""

import fcntl
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from intel_ft.artifacts.fingerprints import hash_of
from intel_ft.errors import UserError
from intel_ft.files import user_cache
from intel_ft.host.cpu import GIB
from intel_ft.layers.mapped import Reader, Writer

LIMIT = "INTEL_FT_BASE_CACHE_GIB"
"""The environment variable with the most GiB that all files together may take."""

DEFAULT_LIMIT = 100.0
_SUFFIX, _PARTIAL = ".base", ".partial"

logger = logging.getLogger(__name__)


class NoCache(Exception):
    """Why a base cannot be kept in the cache."""


def cache_folder() -> Path:
    """Where prepared bases are kept."""
    return user_cache("bases")


def limit_bytes() -> float:
    """The most bytes that all files together may take. Raises UserError."""
    text = os.environ.get(LIMIT, "").strip()
    try:
        limit = float(text or DEFAULT_LIMIT)
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise UserError(f"{LIMIT}={text}: a number of GiB is expected, such as 100")
    return limit * GIB


@contextmanager
def cached(facts: Mapping[str, Any], size: int) -> Iterator[Reader | Writer]:
    """The base with these facts: a reader, or a writer of about `size` bytes to prepare it with.

    Only one process on all hosts that have this folder prepares a base at a time; the others wait.
    After the block, `Writer.failed` says why the base was not kept, if it was not. Raises NoCache
    if it cannot be kept, before anything is made.
    """
    folder = cache_folder()
    path = folder / f"{hash_of(json.dumps(facts, sort_keys=True).encode())}{_SUFFIX}"
    with _locked(folder):
        for left in folder.glob(f".*{_PARTIAL}"):  # by a process that was killed
            with suppress(OSError):
                left.unlink()
        reader = _whole(path, facts)
        if reader is None:
            yield from _make(path, facts, size)
            return
        fcntl.flock(reader.descriptor, fcntl.LOCK_SH)
        with suppress(OSError):  # it was used now
            os.utime(path)
    yield reader


def _whole(path: Path, facts: Mapping[str, Any]) -> Reader | None:
    """The reader of a file that is there and undamaged."""
    reader = Reader.open(path, facts)
    if reader is None or reader.is_whole():
        return reader
    os.close(reader.descriptor)
    logger.warning("%s is damaged: the base is prepared again", path)
    return None


def _make(path: Path, facts: Mapping[str, Any], size: int) -> Iterator[Writer]:
    with suppress(OSError):
        path.unlink()  # damaged, of another user or with other facts
    _make_room(path.parent, size)
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # until this process ends
    except OSError as error:
        raise NoCache(f"{path.parent} cannot be written to ({error.strerror})") from None
    writer = Writer(descriptor, facts)
    try:
        yield writer
        _finish(writer, partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _finish(writer: Writer, partial: Path, path: Path) -> None:
    if writer.failed is not None:
        return
    try:
        writer.finish(verifiable=True)
        os.fsync(writer.descriptor)
        partial.replace(path)
    except OSError as error:
        writer.failed = error.strerror or str(error)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise NoCache(f"{folder} cannot be written to ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another run, which is preparing a base in %s", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise NoCache(f"{folder} cannot be locked ({error.strerror})") from None
        yield


def _make_room(folder: Path, size: int) -> None:
    """Remove the files that were not used for longest until `size` more bytes fit.

    Raises NoCache if they do not, or if the disk has no room for them.
    """
    limit = limit_bytes()
    if size > limit:
        raise NoCache(f"{size / GIB:.1f} GiB are more than {LIMIT} allows, {limit / GIB:g} GiB")
    files = sorted(
        ((status.st_mtime_ns, status.st_size, path) for path, status in _files(folder)),
        key=lambda file: file[0],
    )
    total = sum(bytes_ for _, bytes_, _ in files)
    for _, bytes_, path in files:
        if total + size <= limit and size <= _free(folder):
            return
        if _remove(path):
            logger.info("removed %s from the base cache: least recently used", path)
            total -= bytes_
    if total + size > limit:
        raise NoCache(f"{total / GIB:.1f} GiB of {folder} are in use, {LIMIT} is {limit / GIB:g}")
    if size > _free(folder):
        raise NoCache(f"{folder} has no room for {size / GIB:.1f} GiB: the disk is full")


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):
            yield path, path.stat()


def _free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _remove(path: Path) -> bool:
    """Remove a file unless a process has it mapped; whether it is gone."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
