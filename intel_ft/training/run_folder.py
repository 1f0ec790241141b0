"""The run's folder: opening a new or an old one, and the records at its top; called from
training.run.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.files import write_json, write_text
from intel_ft.training.checkpoint import PREFIX, checkpoints, newest_whole

OURS = ("config.yaml", "environment.json", "metrics.jsonl", "adapter", "tensorboard", "report.html")


def open_run(run: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """Make sure `run` may be written to; the checkpoint to start from, or None.

    Raises UserError where the folder holds a run and neither flag was given, or where it holds
    files that are not a run's.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file, not a folder: choose another output.directory")
    present = sorted(run.iterdir()) if run.is_dir() else []
    if foreign := [path.name for path in present if not _ours(path)]:
        raise UserError(
            f"{run} is not empty and not a run's folder (it holds {foreign[0]}): choose another "
            "output.directory"
        )
    if (run / "adapter").is_dir() and not overwrite:
        raise UserError(
            f"{run}: this run is finished (adapter/ exists): choose another output.directory, or "
            "pass --overwrite to train again"
        )
    if present and not (resume or overwrite):
        found = checkpoints(run)
        what = f"has {found[-1].name}" if found else "holds a run that saved no checkpoint"
        raise UserError(f"{run} {what}: pass --resume to go on, or --overwrite to start again")
    if overwrite:
        for path in present:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run}: cannot be created ({error.strerror})") from None
    return newest_whole(run) if resume else None


def _ours(path: Path) -> bool:
    name = path.name.removeprefix(".")
    return name.startswith(PREFIX) or any(
        name == ours or name.startswith(f"{ours}.") for ours in OURS
    )


def write_records(
    run: Path, config: Config, decisions: list[Decision], environment: dict[str, Any]
) -> None:
    """Write config.yaml (enough to run again) and environment.json (with every decision)."""
    write_text(run / "config.yaml", config.to_yaml())
    write_json(
        run / "environment.json",
        environment | {"decisions": [asdict(decision) for decision in decisions]},
    )
