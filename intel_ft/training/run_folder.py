"""The run's folder: whether a run may write to it, and the records that describe the run."""

import logging
import os
import platform
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from intel_ft import __version__
from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.distributed.folder_lock import FILES as LOCK_FILES
from intel_ft.errors import UserError
from intel_ft.files import write_json, write_text
from intel_ft.host import cpu
from intel_ft.training.checkpoint import checkpoints, newest_whole
from intel_ft.versions import installed

_FILE_OF_A_RUN = re.compile(
    r"config\.yaml|environment\.json|metrics\.jsonl|(samples|examples)\.jsonl|adapter|model|"
    r"tensorboard|report\.html|expert_load\.json|reference\.safetensors|checkpoint-\d+(\.shards)?"
)
_HALF_DONE = re.compile(r"\.(?P<name>.+)\.(partial|replaced|removed)")  # see files.py
RESULTS = ("adapter", "model")
_PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "openvino", "bitsandbytes"),
    "intel_extension_for_pytorch",
)

logger = logging.getLogger(__name__)


def inspect(run: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to resume from, or None to start at step 0. Changes nothing in the folder.

    Rank 0 holds the folder's lock, so that no one else changes it.

    Raises UserError if the folder holds a run and neither flag is given, if that run is finished,
    or if the folder holds files that no run writes.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    found = sorted(run.iterdir()) if run.is_dir() else []  # absent on a host that does not share it
    present = [path for path in found if path.name not in LOCK_FILES]
    if foreign := [path.name for path in present if not _belongs_to_a_run(path)]:
        raise UserError(
            f"{run} is not the folder of a run: it holds {foreign[0]}: choose another "
            "output.directory"
        )
    if overwrite:
        return None
    if done := [name for name in RESULTS if (run / name).is_dir()]:
        more = f" (with model.adapter={run} to train its adapter further)"
        raise UserError(
            f"{run}: this run is finished ({done[0]}/ exists): choose another output.directory"
            f"{more if done[0] == 'adapter' else ''}, or pass --overwrite to train again"
        )
    if present and not resume:
        written = checkpoints(run)
        state = f"has {written[-1].name}" if written else "holds a run without a checkpoint"
        raise UserError(f"{run} {state}: pass --resume to continue, or --overwrite to start again")
    start = newest_whole(run) if resume else None
    if resume and start is None:
        logger.info("%s has no checkpoint yet: starting at step 0", run)
    return start


def _belongs_to_a_run(path: Path) -> bool:
    half_done = _HALF_DONE.fullmatch(path.name)
    return _FILE_OF_A_RUN.fullmatch(half_done["name"] if half_done else path.name) is not None


def begin(run: Path, *, overwrite: bool) -> None:
    """Delete what a kill left half-written; with `overwrite`, all files of an earlier run."""
    try:
        for path in run.iterdir():
            if path.name in LOCK_FILES:
                continue
            if overwrite or path.name.startswith("."):  # a dot: left half-written by a kill
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise UserError(
            f"{run}: {Path(error.filename or run).name} cannot be deleted ({error.strerror}): make "
            "the folder writable, or choose another output.directory"
        ) from None


def write_records(
    run: Path, config: Config, decisions: list[Decision], ranks: int, data: dict[str, Any]
) -> None:
    """Write config.yaml, enough to repeat the run, and environment.json.

    environment.json has every decision with its reason, and the statistics of the data.
    """
    write_text(run / "config.yaml", config.to_yaml())
    write_json(
        run / "environment.json",
        _environment()
        | {
            "ranks": ranks,
            "decisions": [asdict(decision) for decision in decisions],
            "data": data,
        },
    )


def _environment() -> dict[str, Any]:
    versions = {name: installed(name) for name in _PACKAGES}
    return {
        "intel_ft": __version__,
        "python": platform.python_version(),
        "packages": {name: number for name, number in versions.items() if number is not None},
        "host": platform.node(),
        "cpu": cpu.cpu_name(),
        "isa": sorted(cpu.cpu_flags() & {"avx2", "avx512_bf16", "avx512_vnni", "amx_bf16"}),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
    }
