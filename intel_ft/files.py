"""Atomic writes of files and folders, checksums of a folder, and the message for a full disk.

Everything that matters is written to a hidden sibling, flushed to disk and renamed. A crash at any
moment leaves either the old state or the new one, and possibly a `.NAME.partial` that the next
writer of the same name removes.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError

MANIFEST = "manifest.json"
_HASHED_AT_ONCE = 8  # files: a checkpoint of sharded weights has many
_FULL = 1 << 20  # bytes: if less is free after a failed write, the disk is taken to be full


def user_cache(name: str) -> Path:
    """Where intel_ft keeps what it can make again: `name` in XDG_CACHE_HOME or ~/.cache, intel_ft.

    Raises EnvironmentProblem for a user without a home folder, such as a container's.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise EnvironmentProblem(
            "this user has no home folder: set HOME or XDG_CACHE_HOME to a folder for cached data"
        ) from error
    return Path(root) / "intel_ft" / name


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` is the operating system's report of a full disk or an exhausted quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explain_full_disk(path: Path, remedy: str) -> Iterator[None]:
    """Turn a full disk inside the block into an IntelFTError that names `path`.

    remedy: what to do once there is space, as an imperative: "run the command again".
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise IntelFTError(f"{path}: the disk is full: free some space, then {remedy}") from error


def _means_full_disk(error: Exception, folder: Path) -> bool:
    """Whether a failed write means a full disk, whatever the library raised.

    safetensors raises its own exception with the system's message (it allocates the whole file at
    once); torch and OpenVINO raise one without it.
    """
    if isinstance(error, IntelFTError):
        return False
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < _FULL


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a folder to write into; it is renamed to `final` only if the block succeeds.

    An existing `final` is replaced. On any exception the partial folder is removed and `final`
    stays as it was. If the block failed because the disk is full, raises OSError (ENOSPC),
    whatever exception the block raised.
    """
    partial = final.parent / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            _fsync(path)
        _fsync(partial)
    except BaseException as error:
        full = isinstance(error, Exception) and _means_full_disk(error, final.parent)
        shutil.rmtree(partial, ignore_errors=True)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(final)) from error
        raise
    replaced = final.parent / f".{final.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    _fsync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def name_folder(folder: Path, final: Path) -> None:
    """Atomically rename a complete, flushed folder to `final`, which must be absent or empty."""
    if final.is_dir():
        final.rmdir()
    folder.rename(final)
    _fsync(final.parent)


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Yield a path to write to; it is renamed to `final` only if the block succeeds."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f".{final.name}.partial"
    try:
        yield partial
        _fsync(partial)
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Write manifest.json in `folder`: the SHA-256 of every file in it."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    names = [str(path.relative_to(folder)) for path in paths]
    files = dict(zip(names, _digests(paths), strict=True))
    write_json(folder / MANIFEST, {"sha256": files})


def _digests(paths: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        return list(pool.map(sha256, paths))


def damage(folder: Path) -> str | None:
    """What differs from the manifest that `write_manifest` wrote; None if nothing does."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} is missing or unreadable ({error.__class__.__name__})"
    for name in expected:
        if not (folder / name).is_file():
            return f"{name} is missing"
    found = _digests([folder / name for name in expected])
    for (name, digest), actual in zip(expected.items(), found, strict=True):
        if actual != digest:
            return f"{name} does not match its SHA-256"
    return None


def require_absent_or_empty(folder: Path, remedy: str) -> None:
    """Raise UserError if `folder` is a file or a folder that is not empty."""
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a folder: choose another output")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: {remedy}")


def remove_folder(folder: Path) -> None:
    """Delete a folder; a crash halfway leaves no incomplete folder under its name."""
    doomed = folder.parent / f".{folder.name}.removed"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
