"""One rank of a scaling measurement: `python -m intel_ft.insight.rank_side TASK CORES FILE`; rank 0
writes the JSON measurement into FILE. Started by insight.bench_ranks through a real launcher.
"""

import os
import sys
import tempfile
from dataclasses import astuple
from pathlib import Path
from typing import Any

from intel_ft.distributed import topology
from intel_ft.distributed.layout import places
from intel_ft.distributed.started import Started, started_as


def bind_to(cores: int, started: Started) -> None:
    """The same `cores` for this rank, however many ranks run beside it: idle ones stay idle."""
    host = topology.read()
    parts = places(host, host.usable // cores)
    os.sched_setaffinity(0, parts[started.local_rank].cpus[:cores])


def measure(task_json: str, started: Started, folder: Path) -> dict[str, Any]:
    """What all ranks did together, as rank 0 saw it: {tokens_per_s, step_s, step_times,
    exchange_share (of the steps' time, waiting for slower ranks included), rank_imbalance,
    collective, gradient_mib, threads}.
    """
    import numpy as np
    import transformers

    from intel_ft.backends import choice, cuda
    from intel_ft.config import BackendConfig, ModelConfig
    from intel_ft.distributed.join import joined
    from intel_ft.distributed.world import World
    from intel_ft.insight.ours import our_trainer
    from intel_ft.insight.sides import Task
    from intel_ft.insight.workloads import synthetic_examples

    task = Task.from_json(task_json)
    world = World(*astuple(started))
    with joined(world, BackendConfig(), task.backend) as decisions:
        model = ModelConfig(name_or_path=task.workload.name, dtype="bfloat16")
        backend = choice.select(
            BackendConfig(), model, task.backend, world.local_size, world.local_rank
        )
        transformers.set_seed(task.seed)
        examples = synthetic_examples(task.workload, task.seed)
        trainer, watch = our_trainer(task, examples, folder, world)
        trainer.train()
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        work = trainer.work
        work.total.add(work.interval)
        return {
            "tokens_per_s": sum(watch.tally.lengths) / sum(watch.step_times),
            "step_s": float(np.median(watch.step_times)),
            "step_times": watch.step_times,
            "exchange_share": work.total.exchange_seconds / work.total.seconds,
            "rank_imbalance": work.total.imbalance / work.total.steps,
            "collective": decisions[0].value if decisions else "none",
            "gradient_mib": sum(p.numel() * p.element_size() for p in trained) / 2**20,
            "threads": backend.threads,
            **cuda.peak_gib(backend.device),
        }


def main() -> None:
    """Bind before torch is imported, then measure."""
    task, cores, file = sys.argv[1:]
    started = started_as()
    bind_to(int(cores), started)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(task, started, Path(folder))
    if started.rank == 0:
        from intel_ft.files import write_json

        write_json(Path(file), result)


if __name__ == "__main__":
    main()
