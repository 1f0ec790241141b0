"""A training run from config to adapter: read this first to see what `train` does."""

import logging
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from intel_ft import __version__
from intel_ft.artifacts.provenance import Provenance
from intel_ft.backends import choice
from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.distributed.launch.preflight import packages
from intel_ft.distributed.process_group import init_process_group
from intel_ft.distributed.world import World
from intel_ft.errors import IntelFTError
from intel_ft.files import explain_full_disk, whole_folder
from intel_ft.host import cpu, devices
from intel_ft.models.adapter import restore_weights
from intel_ft.models.load import fingerprint, model_folder
from intel_ft.models.tokenizer import copy_tokenizer
from intel_ft.models.weight_files import check_finite
from intel_ft.training import checkpoint, run_folder
from intel_ft.training.assemble import base_id
from intel_ft.training.records import SignalStop
from intel_ft.training.setup import Inputs, build, out_of_memory, read_inputs
from intel_ft.training.step import NotFinite
from intel_ft.training.trainer import PlanTrainer, trainer_for
from intel_ft.training.workload import Training

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "can't allocate memory",
    "Cannot allocate memory",  # torch, mapping a file
    "bad_alloc",
    "not enough memory",
)
_PERHAPS_OUT_OF_MEMORY = "could not create a primitive"  # oneDNN, whatever the reason
_LITTLE_MEMORY = 2**30
_COLLECTIVES = ("gloo", "oneCCL", "NCCL")  # what their errors have in them


@dataclass(frozen=True)
class Summary:
    """What `train` reports: where the adapter (or the whole model) is, and how the run went.

    Losses are nats per token: `train_loss` is the last logged one, `eval_loss` that of the result.
    """

    adapter: str
    trained_parameters: int
    steps: int
    train_loss: float | None
    eval_loss: float | None
    tokens: int
    tokens_per_s: float | None
    mfu: float | None
    seconds: float


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    bound: Sequence[Decision] = (),
) -> Summary:
    """Run the training that `config` describes and write its run folder.

    resume: continue from the newest whole checkpoint in that folder; overwrite: replace the run in
    it; bound: how this process was bound to cores, for the records.

    Raises UserError for bad input, EnvironmentProblem if this machine cannot hold the run, Stopped
    after a signal, IntelFTError for a failure. Whole checkpoints survive all of them, and the
    folder of an earlier run is changed only after everything else has been checked.
    """
    world = World.detect()
    compute = choice.choose(config).value
    with init_process_group(world, config.backend, compute) as decisions:
        return _train(config, world, [*bound, *decisions], resume=resume, overwrite=overwrite)


def _train(
    config: Config, world: World, decided: list[Decision], *, resume: bool, overwrite: bool
) -> Summary:
    run = config.output.directory
    with world.raise_on_all_ranks():
        start = run_folder.inspect(run, resume=resume, overwrite=overwrite)
        if start is not None:
            run_folder.check_settings(run, config)
    with world.raise_on_all_ranks(), world.local_main_process_first():
        inputs = read_inputs(config)
    with world.raise_on_all_ranks(), _explained(config):
        training, decisions = build(config, inputs, world, start)
        if start is not None:
            checkpoint.check_plan(start, training.data.plan.fingerprint())
            training.model.weights.check(start)
            logger.info("resuming from %s", start)
    with world.raise_on_all_ranks():
        _require_same(training, config, start)
    devices.reset_peak(training.model.device)
    decisions.append(_gemm_rate_of_all_ranks(training))
    logger.info("%s", decisions[-1])
    with world.raise_on_all_ranks(), _explained(config):
        if world.rank == 0:
            run_folder.begin(run, overwrite=overwrite)
            parts = {"train": inputs.training, "eval": inputs.validation}
            data = {name: part.statistics() for name, part in parts.items() if part is not None}
            run_folder.write_records(run, config, [*decided, *decisions], world.size, data)
    with _explained(config):
        trainer = trainer_for(config, training, inputs.callbacks)
        try:
            _train_from(start, trainer, config.train.early_stopping)
        except NotFinite:
            check_finite(inputs.folder)  # a lower learning rate does not mend a broken base
            raise
    with world.raise_on_all_ranks(), _explained(config):
        if world.rank == 0:
            _write_result(run, training, config, inputs)
    return _summary(run, trainer)


def _gemm_rate_of_all_ranks(training: Training) -> Decision:
    """Add up the rates that the ranks measured."""
    meter, ranks = training.meter, training.world.size
    rate = torch.tensor([meter.gemm_rate], dtype=torch.float64)
    meter.gemm_rate = float(training.world.all_reduce(rate))
    reason = "measured just now" + (f", sum of {ranks} ranks" if ranks > 1 else "")
    return Decision("MFU's peak", f"{meter.gemm_rate / 1e9:,.0f} GFLOP/s", reason)


def _require_same(training: Training, config: Config, start: Path | None) -> None:
    """Raise EnvironmentProblem if the ranks would not train the same run.

    `launch` compares this before it starts the ranks; Slurm and other launchers do not.
    """
    world = training.world
    if world.size == 1:
        return
    base = model_folder(config.model)
    for what, text in (
        ("Python or package versions", f"{platform.python_version()} {packages()}"),
        ("config", config.to_yaml()),
        ("base model", f"{fingerprint(base)} {(base / 'config.json').read_text('utf-8')}"),
        ("data or tokenizer", training.data.plan.fingerprint()),
        ("run folder, which has to be on a shared filesystem", start.name if start else ""),
    ):
        world.require_same(text, f"the ranks do not have the same {what}")


@contextmanager
def _explained(config: Config) -> Iterator[None]:
    """Turn a library's error for memory, disk or network into one that says what to do."""
    try:
        with explain_full_disk(config.output.directory, "continue the run with --resume"):
            yield
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            raise out_of_memory(config, "while training") from error
        if any(name in str(error) for name in _COLLECTIVES):
            text = " ".join(str(error).split())[:200]
            raise IntelFTError(
                f"the other ranks cannot be reached ({text}): continue from the last checkpoint "
                "with --resume"
            ) from error
        raise


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or any(part in text for part in _OUT_OF_MEMORY)
        or (_PERHAPS_OUT_OF_MEMORY in text and cpu.available_bytes() < _LITTLE_MEMORY)
    )


def _train_from(start: Path | None, trainer: PlanTrainer, early_stopping: int | None) -> None:
    """Train to the end, from a checkpoint or from scratch, and restore the best weights."""
    if start is not None and checkpoint.is_last(start, trainer.args.max_steps, early_stopping):
        trainer.training.model.weights.load(start)
        trainer.best_weights = checkpoint.load_best(start)
    else:
        with SignalStop(trainer.training.world) as stop:
            trainer.add_callback(stop)
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
            stop.raise_if_received(trainer.state.global_step)
    if trainer.best_weights is not None:
        restore_weights(trainer.model, trainer.best_weights)


def _write_result(run: Path, training: Training, config: Config, inputs: Inputs) -> None:
    weights = training.model.weights
    with whole_folder(run / weights.folder) as folder:
        weights.save_result(folder, inputs.tokenizer, base_id(config))
        copy_tokenizer(inputs.tokenizer, folder)
        Provenance(
            kind=weights.kind,
            base_model=base_id(config),
            base_revision=config.model.revision,
            template=inputs.training.template,
            system_prompt=config.data.system_prompt,
            version=__version__,
            base_weights=fingerprint(inputs.folder),
            loss_on=config.data.loss_on,
        ).save(folder)


def _summary(run: Path, trainer: PlanTrainer) -> Summary:
    meter = trainer.training.meter
    meter.finish_interval()
    total = meter.total
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Summary(
        adapter=str(run / trainer.training.model.weights.folder),
        trained_parameters=trainer.trained_parameters,
        steps=trainer.state.global_step or trainer.args.max_steps,
        train_loss=losses[-1] if losses else None,
        eval_loss=trainer.state.best_metric,
        tokens=total.tokens,
        tokens_per_s=total.tokens / total.seconds if total.seconds else None,
        mfu=total.flops / total.seconds / meter.gemm_rate if total.seconds else None,
        seconds=total.seconds,
    )
