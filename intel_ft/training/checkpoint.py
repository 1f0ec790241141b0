"""Checkpoints of a run: written whole or not at all, checked by checksum when resuming."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
from intel_ft.training.sharding import BEST as PARTS_OF_BEST
from intel_ft.training.sharding import FOLDER, move_parts, without_moments
from intel_ft.training.sharding import STATE as PARTS_OF_STATE
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
            f"{run}: every checkpoint ({len(written)} in all) is damaged: start again with "
            "--overwrite"
        )
    return None


def save(trainer: Any, run: Path, step: int, keep: int) -> None:
    """Write checkpoint-<step> from the trainer's state and delete all but the newest `keep`.

    Checkpoints of later steps, which were damaged and skipped when resuming, are neither counted
    nor deleted: the run will replace them. Raises IntelFTError if it cannot be written; earlier
    checkpoints stay intact.
    """
    final, model = run / f"{PREFIX}{step}", trainer.training.model
    with _explained(final), whole_folder(final) as folder:
        optimizer = portable(trainer.optimizer.state_dict())
        if model.shards is None:
            model.weights.save(folder)
        else:
            model.weights.describe(folder)
            move_parts(_staged(final), folder / FOLDER)
            optimizer = without_moments(optimizer)
        torch.save(optimizer, folder / "optimizer.pt")
        torch.save(trainer.lr_scheduler.state_dict(), folder / "scheduler.pt")
        trainer._save_rng_state(str(folder))
        trainer.state.save_to_json(str(folder / STATE))
        facts = trainer.training.facts | rows_fact(trainer.training)
        write_json(folder / PLAN, {"next_step": step, "facts": facts})
        _save_best(trainer, folder)
        write_manifest(folder)
    for old in [path for path in checkpoints(run) if step_of(path) <= step][:-keep]:
        remove_folder(old)


@contextmanager
def _explained(final: Path) -> Iterator[None]:
    """Turn any failure to write the checkpoint into an IntelFTError that says what to do."""
    run = final.parent
    try:
        yield
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


def stage_parts(trainer: Any, final: Path, *, with_state: bool = True) -> None:
    """Write the parts of sharded weights next to the checkpoint `final`, which takes them next.

    All ranks call it. with_state: weights and moments, in addition to the best weights.
    """
    shards, world = trainer.training.model.shards, trainer.training.world
    if shards is None:
        return
    folder = _staged(final)
    with world.raise_on_all_ranks(), _explained(final):
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
    with world.raise_on_all_ranks(), _explained(final):
        if with_state:
            shards.write(folder / PARTS_OF_STATE, shards.state(trainer.optimizer))
        if trainer.best_weights is not None:
            shards.write(folder / PARTS_OF_BEST, trainer.best_weights)


def _staged(final: Path) -> Path:
    return final.parent / f".{final.name}.{FOLDER}.partial"


def _save_best(trainer: Any, folder: Path) -> None:
    if trainer.best_weights is not None and trainer.training.model.shards is None:
        save_file(trainer.best_weights, folder / BEST)


def add_evaluation(trainer: Any, checkpoint: Path) -> None:
    """Write the trainer's state and best weights into the checkpoint that it is at."""
    with whole_folder(checkpoint) as folder:
        for path in checkpoint.iterdir():
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
            elif path.name not in (MANIFEST, STATE, BEST):
                shutil.copyfile(path, folder / path.name)
        trainer.state.save_to_json(str(folder / STATE))
        if trainer.training.model.shards is not None:
            move_parts(_staged(checkpoint), folder / FOLDER)
        _save_best(trainer, folder)
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
    if (shards := trainer.training.model.shards) is not None:
        saved = shards.read_moments(checkpoint, saved, trainer.optimizer)
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


def load_weights(trainer: Any, checkpoint: Path) -> dict[str, torch.Tensor] | None:
    """Load the weights in place; returns those of the best evaluation so far, or None."""
    model = trainer.training.model
    if model.shards is not None:
        best: dict[str, torch.Tensor] | None = model.shards.read_weights(checkpoint)
        return best
    model.weights.load(checkpoint)
    path = checkpoint / BEST
    return load_file(path) if path.is_file() else None


def require_format(checkpoint: Path, *, sharded: bool) -> None:
    """Raise UserError if the checkpoint was written with another value of backend.shard."""
    if (checkpoint / FOLDER).is_dir() != sharded:
        raise UserError(
            f"{checkpoint}: it was written with backend.shard={str(not sharded).lower()}: restore"
            " that value (the number of ranks may change), or start again with --overwrite"
        )


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
