"""A training run from config to adapter: read this first to see what `train` does."""

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from intel_ft import __version__
from intel_ft.artifacts.int4_base import Int4Base
from intel_ft.artifacts.provenance import Provenance
from intel_ft.backends import choice
from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.distributed.launch.preflight import packages
from intel_ft.distributed.process_group import init_process_group
from intel_ft.distributed.world import World
from intel_ft.errors import IntelFTError, Stopped
from intel_ft.files import explain_full_disk, whole_folder
from intel_ft.host import cpu, devices
from intel_ft.kernels.gemm.register_rate import instruction_of
from intel_ft.models.adapter import restore_weights
from intel_ft.models.adapter_effect import without_effect
from intel_ft.models.frozen_base import frozen_dtype
from intel_ft.models.load import fingerprint
from intel_ft.models.tokenizer import copy_tokenizer
from intel_ft.models.weight_files import check_finite
from intel_ft.training import checkpoint, run_folder, run_lock
from intel_ft.training.assemble import base_id
from intel_ft.training.decide import total_steps
from intel_ft.training.int4_base import prepare_int4_base
from intel_ft.training.records import SignalStop
from intel_ft.training.reference import with_reference
from intel_ft.training.run_facts import (
    INT4_WEIGHTS,
    REMEDIES,
    check_facts,
    content_facts,
    settings_facts,
    stored_facts,
)
from intel_ft.training.setup import Inputs, build, out_of_memory, read_inputs
from intel_ft.training.start import start_of, with_adapter
from intel_ft.training.step import NotFinite
from intel_ft.training.stream_rows import check_rows
from intel_ft.training.trainable import Adapter
from intel_ft.training.trainer import PlanTrainer, trainer_for
from intel_ft.training.workload import Training, with_whole_weights

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
class _BaseFacts:
    """Fingerprint of the base's weights when they were loaded, and digest of those in int4."""

    weights: str | None
    int4: str | None


@dataclass(frozen=True)
class Summary:
    """What `train` reports: where the adapter (or the whole model) is, and how the run went.

    Losses are nats per token: `train_loss` is the last logged one, `eval_loss` that of the result.
    `utilization` is None where the CPU's own rate is not known, and on a GPU. shared_prefix_share:
    the share of `tokens` that was not computed again, because examples of a row begin alike.
    without_effect: the kinds of modules that have an adapter which changes nothing.
    """

    adapter: str
    trained_parameters: int
    steps: int
    train_loss: float | None
    eval_loss: float | None
    tokens: int
    shared_prefix_share: float | None
    tokens_per_s: float | None
    mfu: float | None
    utilization: float | None
    seconds: float
    without_effect: list[str]


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
    with explain_full_disk(run, "run the command again"), run_lock.locked(run, world) as lock:
        with world.raise_on_all_ranks():
            start = run_folder.inspect(run, resume=resume, overwrite=overwrite)
            if start is not None:
                checkpoint.require_format(start, sharded=config.backend.shard)
        with world.raise_on_all_ranks():
            world.require_same(settings_facts(config, packages(), start), REMEDIES)
        with world.raise_on_all_ranks(), world.local_main_process_first():
            config = with_adapter(config)
            inputs = read_inputs(config)
            int4 = _int4_base(config, inputs)
        with world.raise_on_all_ranks():
            contents = content_facts(config, inputs, world.local_rank)
            if int4 is not None:
                contents[INT4_WEIGHTS] = int4.digest
        with world.raise_on_all_ranks():
            world.require_same(contents, REMEDIES)
            facts = stored_facts(config, contents)
            if start is not None:
                check_facts(start, checkpoint.facts_of(start), facts)
        with world.raise_on_all_ranks(), _explained(config):
            training, decisions = build(config, inputs, world, start, int4)
            base = _BaseFacts(fingerprint(inputs.folder), None if int4 is None else int4.digest)
            training = replace(training, facts=facts)
            if start is not None:
                training.model.weights.check(start)
                check_rows(training, checkpoint.step_of(start), checkpoint.facts_of(start))
                logger.info("resuming from %s", start)
        devices.reset_peak(training.model.device)
        for rate in _rates_of_all_ranks(training):
            decisions.append(rate)
            logger.info("%s", rate)
        with world.raise_on_all_ranks(), _explained(config):
            if world.rank == 0:
                run_folder.begin(run, overwrite=overwrite)
                parts = {"train": inputs.training, "eval": inputs.validation}
                data = {name: part.statistics() for name, part in parts.items() if part is not None}
                run_folder.write_records(run, config, [*decided, *decisions], world.size, data)
        with _explained(config):
            steps = total_steps(config.train, training.data.plan)
            training = with_reference(training, steps, run, resumed=start is not None)
        with world.raise_on_all_ranks(), _explained(config):
            trainer = trainer_for(config, training, inputs.callbacks)
            if lock is not None:
                trainer.add_callback(run_lock.LockCheck(lock))
        return _train_and_write(start, trainer, config, inputs, base)


def _int4_base(config: Config, inputs: Inputs) -> Int4Base | None:
    if config.base_dtype != "int4":
        return None
    return prepare_int4_base(config, inputs.folder, inputs.training.examples)


def _rates_of_all_ranks(training: Training) -> list[Decision]:
    """Add up the rates that the ranks measured, which all of them have or none has."""
    meter, ranks = training.meter, training.world.size
    rates = torch.tensor([meter.gemm_rate, meter.register_rate or 0.0], dtype=torch.float64)
    meter.gemm_rate, registers = training.world.all_reduce(rates).tolist()
    reason = "measured just now" + (f", sum of {ranks} ranks" if ranks > 1 else "")
    decisions = [Decision("MFU's peak", f"{meter.gemm_rate / 1e9:,.0f} GFLOP/s", reason)]
    if meter.register_rate is not None:
        meter.register_rate = registers
        dtype = frozen_dtype(training.model.network)
        source = f"{instruction_of(dtype)} from registers, {reason}"
        decisions.append(Decision("utilization's peak", f"{registers / 1e9:,.0f} GFLOP/s", source))
    return decisions


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


def _train_and_write(
    start: Path | None,
    trainer: PlanTrainer,
    config: Config,
    inputs: Inputs,
    base: _BaseFacts,
) -> Summary:
    """Train to the end, from a checkpoint or from scratch, and write the result."""
    run, training = config.output.directory, trainer.training
    with SignalStop(training.world) as stop:
        with _explained(config):
            try:
                _train_from(start, trainer, config.train.early_stopping, stop)
            except NotFinite:
                check_finite(inputs.folder)  # a lower learning rate does not mend a broken base
                raise
        stop.when = "after the result is written"
        unchanged: list[str] = []
        if trainer.load is not None:
            trainer.load.log_interval(training.world)  # of steps after the last logged one
        with training.world.raise_on_all_ranks(), _keeping_weights(run, trainer):
            training = trainer.training = with_whole_weights(training)
        with training.world.raise_on_all_ranks(), _keeping_weights(run, trainer):
            if training.world.rank == 0:
                _write_result(run, training, config, inputs, base)
                unchanged = _check_result(run, trainer)
    return _summary(run, trainer, unchanged)


def _train_from(
    start: Path | None, trainer: PlanTrainer, early_stopping: int | None, stop: SignalStop
) -> None:
    """Train to the end, leave a checkpoint of the last step, and restore the best weights."""
    if start is not None:
        trainer.evaluate_if_missing(start)
    if start is not None and checkpoint.is_last(start, trainer.args.max_steps, early_stopping):
        trainer.load_state(start)
        if trainer.state.global_step > trainer.args.max_steps:
            logger.info("%s is beyond train.max_steps: its weights are the result", start)
    else:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        trainer.save_last_step()
        stop.raise_if_received(trainer.state.global_step)
    if trainer.best_weights is not None:
        restore_weights(trainer.model, trainer.best_weights)


@contextmanager
def _keeping_weights(run: Path, trainer: PlanTrainer) -> Iterator[None]:
    """Say where the trained weights are if the result cannot be written."""
    last = run / f"{checkpoint.PREFIX}{trainer.state.global_step}"
    remedy = f"continue with --resume: the trained weights are in {last}"
    try:
        with explain_full_disk(run, remedy):
            yield
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, f"SIGINT: the result was not written: {remedy}") from None
    except IntelFTError as error:
        if remedy not in str(error):
            error.args = (f"{error}; {remedy}",)
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        result = run / trainer.training.model.weights.folder
        raise IntelFTError(f"{result}: cannot be written ({reason}): {remedy}") from error


def _write_result(
    run: Path, training: Training, config: Config, inputs: Inputs, base: _BaseFacts
) -> None:
    weights = training.model.weights
    with whole_folder(run / weights.folder) as folder:
        weights.save_result(folder, inputs.tokenizer, base_id(config), inputs.folder)
        copy_tokenizer(inputs.tokenizer, folder)
        Provenance(
            kind=weights.kind,
            base_model=base_id(config),
            base_revision=config.model.revision,
            template=inputs.training.template,
            system_prompt=config.data.system_prompt,
            version=__version__,
            base_weights=base.weights,
            base_int4=base.int4,
            needs_int4=config.method.init == "loftq",
            loss_on=config.data.loss_on,
            start_adapter=start_of(config.model),
        ).save(folder)


def _check_result(run: Path, trainer: PlanTrainer) -> list[str]:
    """Warn of adapted modules that the adapter does not change, and of experts without tokens.

    Returns the former.
    """
    if trainer.load is not None:
        trainer.load.save(run)
        if note := trainer.load.unused():
            logger.warning("%s", note)
    weights = trainer.training.model.weights
    if not isinstance(weights, Adapter):
        return []
    if unchanged := without_effect(weights.model, weights.initial):
        logger.warning("the adapter has no effect on %s", ", ".join(unchanged))
    return unchanged


def _best_loss(trainer: PlanTrainer) -> float | None:
    """The validation loss of the evaluation that the result comes from."""
    best, key = trainer.state.best_metric, f"eval_{trainer.args.metric_for_best_model}"
    evaluated = [line for line in trainer.state.log_history if "eval_loss" in line]
    return next((line["eval_loss"] for line in evaluated if line.get(key) == best), None)


def _summary(run: Path, trainer: PlanTrainer, unchanged: list[str]) -> Summary:
    meter = trainer.training.meter
    if meter.interval.steps:  # those after the last logged one
        meter.log_interval(trainer.training.world)
    total = meter.total
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Summary(
        adapter=str(run / trainer.training.model.weights.folder),
        trained_parameters=trainer.trained_parameters,
        steps=trainer.state.global_step or trainer.args.max_steps,
        train_loss=losses[-1] if losses else None,
        eval_loss=_best_loss(trainer),
        tokens=total.tokens,
        shared_prefix_share=(
            max(0.0, 1 - total.computed_tokens / total.tokens) if total.tokens else None
        ),
        tokens_per_s=total.tokens / total.seconds if total.seconds else None,
        mfu=total.flops / total.seconds / meter.gemm_rate if total.seconds else None,
        utilization=(
            total.flops / total.seconds / meter.register_rate
            if total.seconds and meter.register_rate
            else None
        ),
        seconds=total.seconds,
        without_effect=unchanged,
    )
