"""A training run from configuration to adapter: read this first to see what `train` does; called
from cli and insight.
"""

import errno
import logging
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from intel_ft import __version__, assets
from intel_ft.backends import cpu
from intel_ft.batching.plan import Plan
from intel_ft.config import Config
from intel_ft.data.prepare import Prepared, prepare, split_fraction
from intel_ft.decisions import Decision
from intel_ft.distributed.world import require_one
from intel_ft.errors import EnvironmentProblem, IntelFTError
from intel_ft.files import whole_folder
from intel_ft.models.adapter import add_lora, load_weights, restore_weights
from intel_ft.models.cost import activation_bytes, step_cost
from intel_ft.models.load import (
    check_folder,
    load_for_packing,
    load_tokenizer,
    model_folder,
    parameter_count,
)
from intel_ft.provenance import Provenance
from intel_ft.training import checkpoint, run_folder
from intel_ft.training.records import MetricsFile, ProgressLine, SignalStop
from intel_ft.training.trainer import PlanTrainer, Workload

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What `train` reports: where the adapter is and how the run went. Losses are nats a token."""

    adapter: str
    steps: int
    train_loss: float | None
    eval_loss: float | None
    tokens: int
    tokens_per_s: float | None
    mfu: float | None
    seconds: float


def train(config: Config, *, resume: bool = False, overwrite: bool = False) -> Summary:
    """Run the training that `config` describes and write its run folder.

    Raises UserError for bad input, EnvironmentProblem for a machine that cannot hold it, Stopped
    after a signal, IntelFTError for a failure; whole checkpoints survive all of them.
    """
    world = require_one()
    run = config.output.directory
    start = run_folder.open_run(run, resume=resume, overwrite=overwrite)
    backend = cpu.select(config.backend, config.model)
    folder = model_folder(config.model)
    check_folder(folder, config.model)
    tokenizer = load_tokenizer(config.model)
    training, evaluation = read_data(config, tokenizer)
    row_tokens = _row_tokens(config)
    _require_memory(config, folder, backend.dtype, training, row_tokens.value)

    try:
        transformers.set_seed(config.train.seed)
        base, why_not_packed = load_for_packing(config.model, backend.dtype)
        model = add_lora(base, config.method, _base_id(config), config.model.revision)
        cost = step_cost(model)
        plan = Plan(
            lengths=training.examples.lengths,
            supervised=training.examples.supervised_counts,
            global_batch_size=config.train.global_batch_size,
            max_tokens_per_row=int(row_tokens.value),
            seed=config.train.seed,
            quadratic_cost=cost.quadratic_cost,
            one_example_a_row=why_not_packed is not None,
        )
        work = Workload(
            plan=plan,
            examples=training.examples,
            cost=cost,
            gemm_rate=_gemm_rate(base, backend.dtype, int(row_tokens.value)),
            packed=why_not_packed is None,
            world=world,
            evaluation=None if evaluation is None else evaluation.examples,
        )
        decisions = [
            *backend.decisions,
            *_data_decisions(training),
            row_tokens,
            _packing_decision(why_not_packed),
            Decision("MFU's peak", f"{work.gemm_rate / 1e9:,.0f} GFLOP/s", "measured just now"),
        ]
        for decision in decisions:
            logger.info("%s", decision)
        if start is not None:
            checkpoint.check_plan(start, plan.fingerprint())
            logger.info("resuming from %s", start)
        run_folder.write_records(run, config, decisions, _environment(backend))
        trainer = _trainer(config, model, work)
        summary = _walk(trainer, work, config, start, tokenizer, training.template)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "alloc" in str(error):
            raise EnvironmentProblem(_out_of_memory(config, "while training")) from error
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise IntelFTError(f"{run}: the disk is full: free space and use --resume") from error
        raise
    return summary


def read_data(config: Config, tokenizer: Any) -> tuple[Prepared, Prepared | None]:
    """The training examples and, where the config names any, the evaluation examples."""
    data = config.data
    training = prepare(data, assets.resolve(data.train), tokenizer)
    evaluation = None
    if data.eval is not None:
        evaluation = prepare(data, assets.resolve(data.eval), tokenizer)
    elif data.eval_fraction:
        training, evaluation = split_fraction(training, data.eval_fraction, config.train.seed)
    for name, part in (("train", training), ("eval", evaluation)):
        for line in part.report.lines() if part is not None else ():
            logger.info("%s: %s", name, line)
    return training, evaluation


def _walk(
    trainer: PlanTrainer,
    work: Workload,
    config: Config,
    start: Path | None,
    tokenizer: Any,
    template: str,
) -> Summary:
    """Train from `start` to the end and write adapter/."""
    run = config.output.directory
    total = trainer.args.max_steps
    if start is not None and checkpoint.step_of(start) >= total:
        load_weights(trainer.model, start)
        trainer.best_weights = checkpoint.load_best(start)
    else:
        with SignalStop() as stop:
            trainer.add_callback(stop)
            try:
                trainer.train(resume_from_checkpoint=None if start is None else str(start))
            finally:
                trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
            stop.raise_if_received(trainer.state.global_step)
    if trainer.best_weights is not None:
        restore_weights(trainer.model, trainer.best_weights)
    adapter = run / "adapter"
    with whole_folder(adapter) as folder:
        trainer.model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
        Provenance(
            kind="adapter",
            base_model=_base_id(config),
            base_revision=config.model.revision,
            template=template,
            system_prompt=config.data.system_prompt,
            version=__version__,
        ).save(folder)
    work.total.add(work.interval)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    done = work.total.seconds > 0
    return Summary(
        adapter=str(adapter),
        steps=trainer.state.global_step or total,
        train_loss=losses[-1] if losses else None,
        eval_loss=trainer.state.best_metric,
        tokens=work.total.tokens,
        tokens_per_s=work.total.tokens / work.total.seconds if done else None,
        mfu=work.total.flops / work.total.seconds / work.gemm_rate if done else None,
        seconds=work.total.seconds,
    )


def _trainer(config: Config, model: Any, work: Workload) -> PlanTrainer:
    settings, run = config.train, config.output.directory
    total = settings.max_steps or max(1, round(settings.epochs * work.plan.steps_per_epoch))
    evaluates = work.evaluation is not None
    arguments = transformers.TrainingArguments(
        output_dir=str(run),
        max_steps=total,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optimizer,
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
        use_cpu=True,
    )
    callbacks: list[Any] = [MetricsFile(run / "metrics.jsonl"), ProgressLine()]
    if settings.early_stopping:
        callbacks.append(transformers.EarlyStoppingCallback(settings.early_stopping))
    if "tensorboard" in settings.report_to:
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
            from transformers.integrations import TensorBoardCallback

            writer = SummaryWriter(run / "tensorboard")
            callbacks.append(TensorBoardCallback(writer))
        else:
            logger.warning("train.report_to: tensorboard is not installed: nothing goes there")
    trainer = PlanTrainer(model, arguments, work, callbacks)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _row_tokens(config: Config) -> Decision:
    """Row capacity: long enough that matrix products run at full rate, and for any example."""
    chosen = config.train.max_tokens_per_row
    if isinstance(chosen, int):
        return Decision("train.max_tokens_per_row", str(chosen), "set in the config")
    tokens = max(2048, config.data.max_length)
    return Decision("train.max_tokens_per_row", str(tokens), "2048, or data.max_length if longer")


def _base_id(config: Config) -> str:
    """The base's own name: a Hub id stays one, a local folder becomes absolute."""
    path = Path(config.model.name_or_path)
    return str(path.resolve()) if path.is_dir() else config.model.name_or_path


def _gemm_rate(base: Any, dtype: torch.dtype, row_tokens: int) -> float:
    config = base.config.get_text_config()
    rows, hidden = min(row_tokens, 2048), config.hidden_size
    wide = getattr(config, "intermediate_size", None) or 4 * hidden
    shapes = [(rows, hidden, hidden), (rows, hidden, wide), (rows, wide, hidden)]
    return cpu.gemm_flops_per_second(dtype, [*shapes, (2048, 1024, 1024)])


def _require_memory(
    config: Config, folder: Path, dtype: torch.dtype, training: Prepared, row_tokens: str
) -> None:
    """Refuse, before the weights are read, a run that this machine plainly cannot hold."""
    text = transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=config.model.trust_remote_code
    )
    tokens = min(int(row_tokens), int(training.examples.lengths.sum()))
    weights = parameter_count(folder) * dtype.itemsize
    activations = activation_bytes(text, tokens, config.train.activation_checkpointing)
    available = cpu.available_bytes()
    if weights + activations > available:
        raise EnvironmentProblem(
            _out_of_memory(
                config,
                f"at start: {weights / cpu.GIB:.1f} GiB of weights, about "
                f"{activations / cpu.GIB:.1f} GiB of activations for a row of {tokens} tokens, "
                f"{available / cpu.GIB:.1f} GiB available",
            )
        )


def _out_of_memory(config: Config, when: str) -> str:
    remedies = ["lower train.max_tokens_per_row and data.max_length"]
    if not config.train.activation_checkpointing:
        remedies.append("set train.activation_checkpointing=true")
    remedies.append("or take a smaller model")
    return f"out of memory {when}: {', '.join(remedies)}"


def _data_decisions(training: Prepared) -> list[Decision]:
    report = training.report
    return [
        Decision("data.format", report.format, report.format_reason),
        Decision("data.template", report.template, report.template_reason),
    ]


def _packing_decision(why_not: str | None) -> Decision:
    if why_not is None:
        return Decision("packing", "on", "this model keeps packed segments apart: checked")
    return Decision("packing", "off, one example a row", why_not)


def _environment(backend: cpu.Backend) -> dict[str, Any]:
    packages = {}
    for name in ("torch", "transformers", "peft", "accelerate", "datasets", "openvino"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "intel_ft": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "host": platform.node(),
        "cpu": cpu.cpu_name(),
        "isa": sorted(cpu.cpu_flags() & {"avx2", "avx512_bf16", "avx512_vnni", "amx_bf16"}),
        "cores": len(os.sched_getaffinity(0)),
        "threads": backend.threads,
        "ranks": 1,
    }
