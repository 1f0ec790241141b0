"""Our own side of the benchmark: the Trainer, plan and model of a real run; called from
insight.side.
"""

from pathlib import Path
from typing import Any

import torch

from intel_ft.backends.choice import device_of
from intel_ft.backends.cpu import Optimize
from intel_ft.batching.plan import Plan
from intel_ft.bench.step_timer import StepTimer, Tally
from intel_ft.bench.task import OWN_TRAINER_IPEX, Task
from intel_ft.bench.workloads import random_model
from intel_ft.config import Config, build
from intel_ft.data.examples import Examples
from intel_ft.distributed.world import World
from intel_ft.host import devices
from intel_ft.models import packed_attention
from intel_ft.models.adapter import add_lora
from intel_ft.models.fast_path import apply_fast_path
from intel_ft.models.flops import activation_bytes, step_cost
from intel_ft.training.run import trainer_for
from intel_ft.training.setup import row_capacity
from intel_ft.training.trainable import Adapter, Trained, WholeModel
from intel_ft.training.trainer import Workload


def our_trainer(
    task: Task, examples: Examples, folder: Path, world: World, optimize: Optimize | None = None
) -> tuple[Any, StepTimer]:
    """What `intel-ft train` would train with, and the stopwatch that ends it. Each rank of `world`
    counts its own examples; all stop after the same step. `optimize`: see backends.cpu.Backend.
    """
    device = device_of(task.backend, world.local_rank)
    base = random_model(task.workload, task.seed, packed_attention.NAME, device)
    return trainer_of(_config(task, folder), base, examples, task.seconds, world, device, optimize)


def exchanged(trainer: Any) -> dict[str, float]:
    """Of training that has ended: {exchange_share (of the steps' time, waiting for slower ranks
    included), rank_imbalance, gradient_mib}.
    """
    work = trainer.work
    work.total.add(work.interval)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    return {
        "exchange_share": work.total.exchange_seconds / work.total.seconds,
        "rank_imbalance": work.total.imbalance / work.total.steps,
        "gradient_mib": sum(weight.numel() * weight.element_size() for weight in trained) / 2**20,
    }


def trainer_of(
    config: Config,
    base: Any,
    examples: Examples,
    seconds: float,
    world: World,
    device: torch.device,
    optimize: Optimize | None = None,
) -> tuple[Any, StepTimer]:
    """The same for a `base` on `device` that `config` trains, or an adapter on it."""
    method, rows = config.method, int(row_capacity(config).value)
    activations = activation_bytes(base.config, rows, config.train.activation_checkpointing)
    dtype = base.dtype
    trained: Trained
    if method.trains_all:
        trained = WholeModel(base.float().requires_grad_(True))
    else:
        model = add_lora(base, method, config.model.name_or_path, None)
        apply_fast_path(model, config, activations, device=device)
        trained = Adapter(model)
    devices.reset_peak(device)
    cost = step_cost(trained.model)
    plan = Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=config.train.global_batch_size,
        max_tokens_per_row=rows,
        seed=config.train.seed,
        quadratic_cost=cost.quadratic_cost,
    )
    # The rate is measured after training; what the run's own records say of MFU is not read.
    work = Workload(
        plan,
        examples,
        cost,
        gemm_rate=1.0,
        packed=True,
        world=world,
        trained=trained,
        dtype=dtype,
        device=device,
        optimize=optimize,
    )
    trainer = trainer_for(config, trained.model, work)
    tally = Tally()

    def count(index: int) -> None:
        own = plan.step(index).shares(world.size)[world.rank]
        tally.add(examples.lengths[own].tolist(), int(examples.supervised_counts[own].sum()))

    watch = StepTimer(tally, seconds, count, world)
    trainer.add_callback(watch)
    return trainer, watch


def _config(task: Task, folder: Path) -> Config:
    return build(
        {
            "model": {
                "name_or_path": task.workload.name,
                "dtype": "bfloat16",
                "base_dtype": task.base_dtype,
            },
            "data": {"train": "synthetic", "max_length": min(task.workload.row_tokens, 8192)},
            "method": {"r": task.rank, "alpha": 2 * task.rank},
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
