"""Folder of finished stages next to the output, from which an interrupted export resumes."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import read_json
from intel_ft.errors import IntelFTError, Stopped
from intel_ft.export.output import RERUN
from intel_ft.files import (
    explain_full_disk,
    remove_folder,
    require_absent_or_empty,
    whole_folder,
    write_json,
)

logger = logging.getLogger(__name__)

_KEY = "key.json"


@contextmanager
def workspace(output: Path, key: dict[str, Any]) -> Iterator[Path]:
    """Yield `.OUTPUT.export`, with the stages that an earlier export of the same `key` finished.

    The folder is removed when the block ends, unless the export is interrupted or killed. Raises
    UserError if `output` is not empty, IntelFTError if the disk is full.
    """
    require_absent_or_empty(output, "choose another output, or remove it first")
    work = output.parent / f".{output.name}.export"
    key = json.loads(json.dumps(key))
    try:
        if work.is_dir() and _read_key(work) != key:
            shutil.rmtree(work)
        if work.is_dir():
            logger.info("resuming the interrupted export in %s", work)
        with explain_full_disk(output, RERUN):
            work.mkdir(parents=True, exist_ok=True)
            write_json(work / _KEY, key)
            yield work
    except (KeyboardInterrupt, Stopped):
        raise
    except Exception:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work)


def stage(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` unless it exists; complete or absent at any moment."""
    if not folder.is_dir():
        with whole_folder(folder) as partial:
            make(partial)
    return folder


def drop_stage(folder: Path) -> None:
    """Remove a stage's folder, if there is one."""
    if folder.is_dir():
        remove_folder(folder)


def _read_key(work: Path) -> dict[str, Any]:
    try:
        return read_json(work / _KEY)
    except IntelFTError:
        return {}
