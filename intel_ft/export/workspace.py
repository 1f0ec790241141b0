"""Where an export keeps what is finished until it is whole: a hidden folder beside the output, from
which an interrupted export goes on; called from export.openvino.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import read_json
from intel_ft.errors import IntelFTError
from intel_ft.export.output import RERUN
from intel_ft.files import (
    explain_full_disk,
    remove_folder,
    require_absent_or_empty,
    whole_folder,
    write_json,
)

log = logging.getLogger(__name__)

_KEY = "key.json"


@contextmanager
def workspace(output: Path, key: dict[str, Any]) -> Iterator[Path]:
    """Yield `.OUTPUT.export`, with what an export of the same `key` finished there, else empty.

    It is removed when the block ends, unless it is interrupted or killed. Raises UserError if
    `output` holds anything, IntelFTError if the disk is full.
    """
    require_absent_or_empty(output, "choose another output, or remove it first")
    work = output.parent / f".{output.name}.export"
    key = json.loads(json.dumps(key))
    try:
        if work.is_dir() and _finished(work) != key:
            shutil.rmtree(work)
        if work.is_dir():
            log.info("going on from what an interrupted export left")
        with explain_full_disk(output, RERUN):
            work.mkdir(parents=True, exist_ok=True)
            write_json(work / _KEY, key)
            yield work
    except KeyboardInterrupt:
        raise
    except Exception:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)


def stage(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` unless it is there already; whole or absent at any moment."""
    if not folder.is_dir():
        with whole_folder(folder) as partial:
            make(partial)
    return folder


def drop(folder: Path) -> None:
    """Remove a stage's folder, if there is one."""
    if folder.is_dir():
        remove_folder(folder)


def fingerprint(folder: Path) -> str:
    """What tells a model or adapter folder from another or a later one: its files' names, sizes and
    times, as SHA-256 in hexadecimal.
    """
    state = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _finished(work: Path) -> dict[str, Any]:
    try:
        return read_json(work / _KEY)
    except IntelFTError:
        return {}
