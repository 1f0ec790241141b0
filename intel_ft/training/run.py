"""A training run from configuration to adapter: read this first to see what `train` does; called
from cli.train and demo.
"""

import logging
import math
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

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
from intel_ft.training import checkpoint, run_folder
from intel_ft.training.callbacks import trackers
from intel_ft.training.optimizer_state import optimizer_name
from intel_ft.training.records import MetricsFile, ProgressLine, SignalStop
from intel_ft.training.setup import Inputs, base_id, build, out_of_memory, read_inputs
from intel_ft.training.trainer import PlanTrainer, Workload

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = ("CUDA out of memory", "can't allocate memory", "bad_alloc", "not enough memory")
_PERHAPS_OUT_OF_MEMORY = "could not create a primitive"  # oneDNN, whatever the reason
_LITTLE_MEMORY = 2**30
_COLLECTIVES = ("gloo", "oneCCL", "NCCL")  # what their errors have in them


@dataclass(frozen=True)
class Summary:
    """What `train` reports: where the adapter (or the whole model) is and how the run went. Losses
    are nats a token; `train_loss` is the last logged one, `eval_loss` that of what was kept.
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
    """Run the training that `config` describes and write its run folder; `bound` says how this
    process was bound to cores, for the records.

    Raises UserError for bad input, EnvironmentProblem for a machine that cannot hold it, Stopped
    after a signal, IntelFTError for a failure; whole checkpoints survive all of them, and an
    earlier run's folder is touched only once everything else has been found good.
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
        model, work, decisions = build(config, inputs, world, start)
        if start is not None:
            checkpoint.check_plan(start, work.plan.fingerprint())
            work.trained.check(start)
            logger.info("resuming from %s", start)
    with world.raise_on_all_ranks():
        _require_same(world, config, work, start)
    devices.reset_peak(work.device)
    work.gemm_rate = float(world.all_reduce(torch.tensor([work.gemm_rate], dtype=torch.float64)))
    measured = "measured just now" + (f", of {world.size} ranks" if world.size > 1 else "")
    decisions.append(Decision("MFU's peak", f"{work.gemm_rate / 1e9:,.0f} GFLOP/s", measured))
    logger.info("%s", decisions[-1])
    with world.raise_on_all_ranks(), _explained(config):
        if world.rank == 0:
            run_folder.begin(run, overwrite=overwrite)
            parts = {"train": inputs.training, "eval": inputs.evaluation}
            data = {name: part.statistics() for name, part in parts.items() if part is not None}
            run_folder.write_records(run, config, [*decided, *decisions], world.size, data)
    with _explained(config):
        trainer = trainer_for(config, model, work, inputs.callbacks)
        _train_from(start, trainer, config.train.early_stopping)
    with world.raise_on_all_ranks(), _explained(config):
        if world.rank == 0:
            _write_result(run / work.trained.folder, work, config, inputs)
    return _summary(run, trainer, work)


def _require_same(world: World, config: Config, work: Workload, start: Path | None) -> None:
    """Raise EnvironmentProblem where ranks would not train the same run. What `launch` compares
    before it starts them, too: Slurm and people do not.
    """
    if world.size == 1:
        return
    base = model_folder(config.model)
    for what, text in (
        ("Python or package versions", f"{platform.python_version()} {packages()}"),
        ("config", config.to_yaml()),
        ("base model", f"{fingerprint(base)} {(base / 'config.json').read_text('utf-8')}"),
        ("data or tokenizer", work.plan.fingerprint()),
        ("run folder, which is to be on a shared filesystem", start.name if start else ""),
    ):
        world.require_same(text, f"the ranks do not have the same {what}")


@contextmanager
def _explained(config: Config) -> Iterator[None]:
    """Say what a library's error means here."""
    try:
        with explain_full_disk(config.output.directory, "continue the run with --resume"):
            yield
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            raise out_of_memory(config, "while training") from error
        if any(name in str(error) for name in _COLLECTIVES):
            text = " ".join(str(error).split())[:200]
            raise IntelFTError(
                f"the other ranks cannot be reached ({text}): --resume goes on from the last "
                "checkpoint"
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
    """Train from a checkpoint or from scratch to the end; the best weights are in place then."""
    if start is not None and checkpoint.is_last(start, trainer.args.max_steps, early_stopping):
        trainer.work.trained.load(start)
        trainer.best_weights = checkpoint.load_best(start)
    else:
        with SignalStop(trainer.work.world) as stop:
            trainer.add_callback(stop)
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
            stop.raise_if_received(trainer.state.global_step)
    if trainer.best_weights is not None:
        restore_weights(trainer.model, trainer.best_weights)


def _write_result(final: Path, work: Workload, config: Config, inputs: Inputs) -> None:
    with whole_folder(final) as folder:
        work.trained.save_result(folder, inputs.tokenizer, base_id(config))
        inputs.tokenizer.save_pretrained(folder)
        Provenance(
            kind=work.trained.kind,
            base_model=base_id(config),
            base_revision=config.model.revision,
            template=inputs.training.template,
            system_prompt=config.data.system_prompt,
            version=__version__,
            base_weights=fingerprint(inputs.folder),
        ).save(folder)


def _summary(run: Path, trainer: PlanTrainer, work: Workload) -> Summary:
    work.total.add(work.interval)
    seconds = work.total.seconds
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return Summary(
        adapter=str(run / work.trained.folder),
        trained_parameters=trainer.trained_parameters,
        steps=trainer.state.global_step or trainer.args.max_steps,
        train_loss=losses[-1] if losses else None,
        eval_loss=trainer.state.best_metric,
        tokens=work.total.tokens,
        tokens_per_s=work.total.tokens / seconds if seconds else None,
        mfu=work.total.flops / seconds / work.gemm_rate if seconds else None,
        seconds=seconds,
    )


def trainer_for(
    config: Config, model: Any, work: Workload, users: Iterable[Any] = ()
) -> PlanTrainer:
    """The Trainer that `config` describes, with a run's callbacks and before them the user's own,
    on every rank; called from insight, too.
    """
    settings, run = config.train, config.output.directory
    evaluates = work.evaluation is not None
    total = settings.max_steps or max(1, round(settings.epochs * work.plan.steps_per_epoch))
    arguments = transformers.TrainingArguments(
        output_dir=str(run),
        max_steps=total,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=math.ceil(settings.warmup_ratio * total),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=optimizer_name(settings.optimizer, work.device),
        seed=settings.seed,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        eval_strategy=("steps" if settings.eval_steps else "epoch") if evaluates else "no",
        eval_steps=settings.eval_steps,
        metric_for_best_model="loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        gradient_checkpointing=settings.activation_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=work.device.type == "cpu",
    )
    callbacks: list[Any] = [*users]
    if settings.early_stopping:
        callbacks.append(transformers.EarlyStoppingCallback(settings.early_stopping))
    if work.world.rank == 0:
        callbacks += [MetricsFile(run / "metrics.jsonl"), ProgressLine(), *trackers(config)]
    trainer = PlanTrainer(model, arguments, work, callbacks, config.method.lora_plus_ratio)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer
