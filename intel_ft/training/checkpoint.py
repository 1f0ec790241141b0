"""Checkpoints of a run: written whole, found newest first, damaged ones skipped by name; called
from training.run and training.trainer.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerState

from intel_ft.errors import IntelFTError, UserError
from intel_ft.files import damage, remove_folder, whole_folder, write_json, write_manifest
from intel_ft.training.optimizer_state import fitted, portable

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
BEST = "best.safetensors"
PLAN = "plan.json"
STATE = "trainer_state.json"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest step first, whole or not."""
    found = [p for p in run.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done when this checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint whose every file matches its manifest; warns of each one skipped.

    Raises IntelFTError if there are checkpoints and none is whole.
    """
    found = checkpoints(run)
    for checkpoint in reversed(found):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("skipped %s: %s", checkpoint, problem)
    if found:
        raise IntelFTError(
            f"{run}: none of its {len(found)} checkpoints is whole: start again with --overwrite"
        )
    return None


def save(trainer: Any, run: Path, step: int, keep: int) -> None:
    """Write checkpoint-<step> from the trainer's state and drop all but the newest `keep`.

    Later ones, which resuming found damaged and skipped, neither count nor go: their turn comes.

    Raises IntelFTError, with the earlier checkpoints intact, if it cannot be written.
    """
    final = run / f"{PREFIX}{step}"
    try:
        with whole_folder(final) as folder:
            trainer.work.trained.save(folder)
            torch.save(portable(trainer.optimizer.state_dict()), folder / "optimizer.pt")
            torch.save(trainer.lr_scheduler.state_dict(), folder / "scheduler.pt")
            trainer._save_rng_state(str(folder))
            trainer.state.save_to_json(str(folder / STATE))
            write_json(
                folder / PLAN, {"next_step": step, "fingerprint": trainer.plan.fingerprint()}
            )
            if trainer.best_weights is not None:
                save_file(trainer.best_weights, folder / BEST)
            write_manifest(folder)
    # torch and safetensors report a full disk as errors of their own.
    except Exception as error:
        whole = [path.name for path in checkpoints(run) if damage(path) is None]
        kept = f"{whole[-1]} is intact: free space and use --resume" if whole else "none exists yet"
        raise IntelFTError(
            f"{final}: the checkpoint could not be written ({' '.join(str(error).split())}); {kept}"
        ) from error
    for old in [path for path in checkpoints(run) if step_of(path) <= step][:-keep]:
        remove_folder(old)


def evaluations_without_gain(state: TrainerState) -> int:
    """How many evaluations in a row had brought no new best by then, as early stopping counts."""
    stored: Any = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
    return int(stored.get("attributes", {}).get("early_stopping_patience_counter", 0))


def is_last(checkpoint: Path, max_steps: int, early_stopping: int | None) -> bool:
    """Whether a run has nothing left to train after this checkpoint."""
    if step_of(checkpoint) >= max_steps:
        return True
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    return early_stopping is not None and evaluations_without_gain(state) >= early_stopping


def load_optimizer(trainer: Any, checkpoint: Path) -> None:
    """Give the trainer's optimizer and scheduler their state back."""
    saved, schedule = (
        torch.load(checkpoint / name, map_location="cpu", weights_only=True)
        for name in ("optimizer.pt", "scheduler.pt")
    )
    paged = trainer.args.optim.startswith("paged")
    trainer.optimizer.load_state_dict(fitted(saved, trainer.optimizer.state_dict(), paged=paged))
    trainer.lr_scheduler.load_state_dict(schedule)


def load_best(checkpoint: Path) -> dict[str, torch.Tensor] | None:
    """The weights of the best evaluation so far, if the run had one."""
    path = checkpoint / BEST
    return load_file(path) if path.is_file() else None


def check_plan(checkpoint: Path, fingerprint: str) -> None:
    """Raise UserError if the checkpoint belongs to other data, batch size or seed."""
    plan = json.loads((checkpoint / PLAN).read_text(encoding="utf-8"))
    if plan["fingerprint"] != fingerprint:
        raise UserError(
            f"{checkpoint}: its data, data.max_length, train.global_batch_size or train.seed were "
            "others, so its steps are not this run's: restore them, or start with --overwrite"
        )
