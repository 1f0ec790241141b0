"""Checkpoints of a run: written whole or not at all, checked by checksum when resuming."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerState

from intel_ft.errors import IntelFTError, UserError
from intel_ft.files import (
    MANIFEST,
    damage,
    explain_full_disk,
    is_disk_full,
    remove_folder,
    whole_folder,
    write_json,
    write_manifest,
)
from intel_ft.training.optimizer_state import fitted, portable
from intel_ft.training.stream_rows import rows_fact

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
            facts = trainer.training.facts | rows_fact(trainer.training)
            write_json(folder / PLAN, {"next_step": step, "facts": facts})
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


def add_evaluation(trainer: Any, checkpoint: Path) -> None:
    """Write the trainer's state and best weights into the checkpoint that it is at."""
    with whole_folder(checkpoint) as folder:
        for path in checkpoint.iterdir():
            if path.name not in (MANIFEST, STATE, BEST):
                shutil.copyfile(path, folder / path.name)
        trainer.state.save_to_json(str(folder / STATE))
        if trainer.best_weights is not None:
            save_file(trainer.best_weights, folder / BEST)
        write_manifest(folder)


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
    """Restore the state of the trainer's optimizer and scheduler.

    With another number of steps than before, the learning rate is that of the new schedule from
    this step on, which is reported.
    """
    saved, schedule = (
        torch.load(checkpoint / name, map_location="cpu", weights_only=True)
        for name in ("optimizer.pt", "scheduler.pt")
    )
    paged = trainer.args.optim.startswith("paged")
    trainer.optimizer.load_state_dict(fitted(saved, trainer.optimizer.state_dict(), paged=paged))
    trainer.lr_scheduler.load_state_dict(schedule)
    before, now = (
        TrainerState.load_from_json(str(checkpoint / STATE)).max_steps,
        trainer.args.max_steps,
    )
    if before != now:
        scheduler, groups = trainer.lr_scheduler, trainer.optimizer.param_groups
        old = groups[0]["lr"]
        for group, base, factor in zip(
            groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in groups]
        logger.info(
            "the run had %d steps and now has %d: from step %d on, the learning rate is that of "
            "the %s schedule over %d steps (%.3g; it would have been %.3g)",
            *(before, now, step_of(checkpoint) + 1, trainer.args.lr_scheduler_type.value, now),
            *(groups[0]["lr"], old),
        )


def load_best(checkpoint: Path) -> dict[str, torch.Tensor] | None:
    """The weights of the best evaluation so far, or None before the first evaluation."""
    path = checkpoint / BEST
    return load_file(path) if path.is_file() else None


def facts_of(checkpoint: Path) -> dict[str, str]:
    """What the run that wrote the checkpoint depended on (training.run_facts).

    Raises UserError for a checkpoint of a version that did not keep it.
    """
    facts = json.loads((checkpoint / PLAN).read_text(encoding="utf-8")).get("facts")
    if not isinstance(facts, dict):
        raise UserError(
            f"{checkpoint}: an earlier version of intel_ft wrote it, without fingerprints of base "
            "and data: continue with that version, or start again with --overwrite"
        )
    return facts
