"""Checkpoints of a run: written whole or not at all, checked by checksum when resuming."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerState

from intel_ft.errors import IntelFTError, UserError
from intel_ft.files import (
    damage,
    explain_full_disk,
    is_disk_full,
    remove_folder,
    whole_folder,
    write_json,
    write_manifest,
)
from intel_ft.training.optimizer_state import fitted, portable

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
BEST = "best.safetensors"
PLAN = "plan.json"
STATE = "trainer_state.json"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest step first, whole or not."""
    folders = [p for p in run.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done when this checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint whose files all match its manifest; warns of each one skipped.

    Returns None if there is no checkpoint. Raises IntelFTError if there are some, all damaged.
    """
    written = checkpoints(run)
    for checkpoint in reversed(written):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("skipped %s: %s", checkpoint, problem)
    if written:
        raise IntelFTError(
            f"{run}: all of its {len(written)} checkpoints are damaged: start again with "
            "--overwrite"
        )
    return None


def save(trainer: Any, run: Path, step: int, keep: int) -> None:
    """Write checkpoint-<step> from the trainer's state and delete all but the newest `keep`.

    Checkpoints of later steps, which were damaged and skipped when resuming, are neither counted
    nor deleted: the run will replace them. Raises IntelFTError if it cannot be written; earlier
    checkpoints stay intact.
    """
    final = run / f"{PREFIX}{step}"
    try:
        with whole_folder(final) as folder:
            trainer.training.model.weights.save(folder)
            torch.save(portable(trainer.optimizer.state_dict()), folder / "optimizer.pt")
            torch.save(trainer.lr_scheduler.state_dict(), folder / "scheduler.pt")
            trainer._save_rng_state(str(folder))
            trainer.state.save_to_json(str(folder / STATE))
            plan = trainer.training.data.plan
            write_json(folder / PLAN, {"next_step": step, "fingerprint": plan.fingerprint()})
            if trainer.best_weights is not None:
                save_file(trainer.best_weights, folder / BEST)
            write_manifest(folder)
    except Exception as error:
        whole = [path.name for path in checkpoints(run) if damage(path) is None]
        remedy = "start the run again: there is no checkpoint yet"
        if whole:
            remedy = f"continue the run with --resume: {whole[-1]} is intact"
        if is_disk_full(error):
            with explain_full_disk(final, remedy):
                raise
        reason = " ".join(str(error).split())
        raise IntelFTError(f"{final}: cannot be written ({reason}): {remedy}") from error
    for old in [path for path in checkpoints(run) if step_of(path) <= step][:-keep]:
        remove_folder(old)


def evaluations_without_gain(state: TrainerState) -> int:
    """How many evaluations in a row brought no new best, as early stopping counts them."""
    stored: Any = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
    return int(stored.get("attributes", {}).get("early_stopping_patience_counter", 0))


def is_last(checkpoint: Path, max_steps: int, early_stopping: int | None) -> bool:
    """Whether the run ends at this checkpoint: all steps done, or stopped early."""
    if step_of(checkpoint) >= max_steps:
        return True
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    return early_stopping is not None and evaluations_without_gain(state) >= early_stopping


def load_optimizer(trainer: Any, checkpoint: Path) -> None:
    """Restore the state of the trainer's optimizer and scheduler."""
    saved, schedule = (
        torch.load(checkpoint / name, map_location="cpu", weights_only=True)
        for name in ("optimizer.pt", "scheduler.pt")
    )
    paged = trainer.args.optim.startswith("paged")
    trainer.optimizer.load_state_dict(fitted(saved, trainer.optimizer.state_dict(), paged=paged))
    trainer.lr_scheduler.load_state_dict(schedule)


def load_best(checkpoint: Path) -> dict[str, torch.Tensor] | None:
    """The weights of the best evaluation so far, or None before the first evaluation."""
    path = checkpoint / BEST
    return load_file(path) if path.is_file() else None


def check_plan(checkpoint: Path, fingerprint: str) -> None:
    """Raise UserError if the checkpoint was written with other data, batch size or seed."""
    plan = json.loads((checkpoint / PLAN).read_text(encoding="utf-8"))
    if plan["fingerprint"] != fingerprint:
        raise UserError(
            f"{checkpoint}: it was written with different data, data.max_length, "
            "train.global_batch_size or train.seed: restore them, or start again with --overwrite"
        )
