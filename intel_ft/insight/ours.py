"""Our own side of the benchmark: the Trainer, plan and model of a real run; called from
insight.side.
"""

from pathlib import Path
from typing import Any

from intel_ft.backends import cuda
from intel_ft.backends.choice import device_of
from intel_ft.backends.cpu import Optimize
from intel_ft.batching.plan import Plan
from intel_ft.config import Config, build
from intel_ft.data.examples import Examples
from intel_ft.distributed.world import World
from intel_ft.insight.sides import OURS_IPEX, Task
from intel_ft.insight.stopwatch import Stopwatch, Tally
from intel_ft.insight.workloads import random_model
from intel_ft.models import packed
from intel_ft.models.adapter import add_lora
from intel_ft.models.cost import StepCost, activation_bytes
from intel_ft.models.speed import hasten
from intel_ft.models.trained import Adapter
from intel_ft.training.run import trainer_for
from intel_ft.training.trainer import Workload


def our_trainer(
    task: Task,
    examples: Examples,
    cost: StepCost,
    folder: Path,
    world: World,
    optimize: Optimize | None = None,
) -> tuple[Any, Stopwatch]:
    """What `intel-ft train` would train with, and the stopwatch that ends it. All ranks of `world`
    count the tokens of the global batch, and stop after the same step. `optimize`: see
    backends.cpu.Backend.
    """
    config = _config(task, folder)
    device = device_of(task.backend, world.local_rank)
    base = random_model(task.workload, task.seed, packed.NAME, device)
    shape = task.workload
    activations = activation_bytes(base.config, shape.row_tokens, task.checkpointing)
    model = add_lora(base, config.method, task.workload.name, None)
    hasten(model, config, activations, device=device)
    cuda.forget_peak(device)
    plan = Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=task.workload.batch,
        max_tokens_per_row=task.workload.row_tokens,
        seed=task.seed,
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
        trained=Adapter(model),
        device=device,
        optimize=optimize,
    )
    trainer = trainer_for(config, model, work)
    tally = Tally()

    def count(index: int) -> None:
        step = plan.step(index)
        tally.add(examples.lengths[step.examples].tolist(), step.supervised_tokens)

    watch = Stopwatch(tally, task.seconds, count, lambda enough: bool(world.largest(int(enough))))
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
            "backend": {"name": "ipex" if task.side == OURS_IPEX else task.backend},
            "output": {"directory": folder},
        },
        "bench",
    )
