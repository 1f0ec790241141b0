"""Writing files and folders so that a final name always means a whole thing; called from
training, export and cli.

Everything that matters is written aside (a sibling with a dot in front), flushed to disk and
renamed. A crash at any moment leaves either the old state or the new one, and possibly a
`.NAME.partial` that the next writer of the same name removes.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intel_ft.errors import IntelFTError, UserError

MANIFEST = "manifest.json"
_FULL = 1 << 20  # a disk on which a write has failed with less than this many bytes left is full


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _says_full(error: Exception, folder: Path) -> bool:
    """Whether a failed write means a full disk: safetensors raises an exception of its own that
    says so (it asks for the whole file's space at once), torch and OpenVINO one that does not.
    """
    if isinstance(error, IntelFTError):
        return False
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < _FULL


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a folder to write into; it gets the name `final` only if the block succeeds.

    An existing `final` is replaced. On any exception the partial folder is removed and `final`
    is left as it was. Raises OSError (ENOSPC) where the block failed because the disk is full,
    whatever it raised itself.
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
        full = isinstance(error, Exception) and _says_full(error, final.parent)
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
    """Rename a whole folder, on disk already, to `final`, which is absent or empty: in one step."""
    if final.is_dir():
        final.rmdir()
    folder.rename(final)
    _fsync(final.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, aside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, aside and renamed."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Write manifest.json in `folder`: the SHA-256 of every file in it."""
    files = {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"sha256": files})


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that `write_manifest` sealed; None if it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} is missing or unreadable ({error.__class__.__name__})"
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != digest:
            return f"{name} does not match its SHA-256"
    return None


def require_absent_or_empty(folder: Path, remedy: str) -> None:
    """Raise UserError if `folder` exists and holds anything."""
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a folder: choose another output")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: {remedy}")


def remove_folder(folder: Path) -> None:
    """Delete a folder such that a crash half way leaves no broken one under its own name."""
    doomed = folder.parent / f".{folder.name}.removed"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
