"""The own trainer as a contender: a real run's training and Trainer, on a random base model."""

import time
from pathlib import Path
from typing import Any

from intel_ft.backends.cpu import Backend
from intel_ft.bench.step_timer import StepTimer, Tally
from intel_ft.bench.task import OWN_TRAINER_IPEX, Task
from intel_ft.bench.workloads import int4_base, random_model
from intel_ft.config import Config, build
from intel_ft.distributed.world import World
from intel_ft.host import devices
from intel_ft.layers import packed_attention
from intel_ft.templates.answers import segments_in
from intel_ft.templates.examples import Examples
from intel_ft.training.assemble import assemble
from intel_ft.training.reference import with_reference
from intel_ft.training.trainer import PlanTrainer, trainer_for


def own_trainer(
    task: Task, examples: Examples, folder: Path, world: World, backend: Backend
) -> tuple[PlanTrainer, StepTimer]:
    """What `intel-ft train` would train with, and the timer that ends it."""
    base = random_model(task.workload, task.seed, packed_attention.NAME, backend.device)
    return timed_trainer(_config(task, folder), base, examples, task.seconds, world, backend)


def timed_trainer(
    config: Config, base: Any, examples: Examples, seconds: float, world: World, backend: Backend
) -> tuple[PlanTrainer, StepTimer]:
    """A Trainer as `config` describes it, on a `base` with packed attention, and its timer.

    Each rank counts its own examples; all ranks stop after the same step. A step's time includes
    its share of the pass that computes the reference, over one epoch. The GEMM rate is not measured
    here, so the MFU in the run's own records has no meaning.
    """
    int4 = int4_base(base) if config.base_dtype == "int4" else None
    training, _ = assemble(config, base, examples, backend, world, int4=int4)
    plan, before = training.data.plan, time.perf_counter()
    training = with_reference(training, plan.steps_per_epoch)
    of_reference = time.perf_counter() - before
    devices.reset_peak(backend.device)
    trainer = trainer_for(config, training)
    tally = Tally()

    def count(index: int) -> None:
        answers, share = segments_in(examples, plan.step(index).shares(world.size)[world.rank])
        tally.add(answers.lengths[share].tolist(), int(answers.supervised_counts[share].sum()))

    timer = StepTimer(tally, seconds, count, world, of_reference / plan.steps_per_epoch)
    trainer.add_callback(timer)
    return trainer, timer


def exchange_facts(trainer: PlanTrainer) -> dict[str, float]:
    """The cost of several ranks in a finished training.

    Returns {exchange_share (of the steps' time, waiting for slower ranks included),
    rank_imbalance, gradient_mib}.
    """
    meter = trainer.training.meter
    meter.finish_interval()
    trained = trainer.training.model.trained_parameters()
    return {
        "exchange_share": meter.total.exchange_seconds / meter.total.seconds,
        "rank_imbalance": meter.total.imbalance / meter.total.steps,
        "gradient_mib": sum(weight.numel() * weight.element_size() for weight in trained) / 2**20,
    }


def _config(task: Task, folder: Path) -> Config:
    compares = task.workload.loss == "dpo"
    row = task.workload.row_tokens // 2 if compares else task.workload.row_tokens
    return build(
        {
            "model": {
                "name_or_path": task.workload.name,
                "dtype": "bfloat16",
                "base_dtype": task.base_dtype,
            },
            "data": {"train": "synthetic", "max_length": min(row, 8192)},
            "method": {"name": "preference" if compares else "lora"}
            | {"r": task.rank, "alpha": 2 * task.rank},
            "train": {
                "max_steps": 10**6,
                "save_steps": 10**6,
                "global_batch_size": task.workload.batch,
                "max_tokens_per_row": task.workload.row_tokens,
                "seed": task.seed,
                "activation_checkpointing": task.checkpointing,
                "report_to": [],
            },
            "backend": {"name": "ipex" if task.contender == OWN_TRAINER_IPEX else task.backend},
            "output": {"directory": folder},
        },
        "bench",
    )
