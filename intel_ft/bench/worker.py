"""One run of one side in processes of its own: `python -m intel_ft.bench.worker TASK`, a JSON task
in, a JSON measurement out on rank 0's stdout; started by insight.runs.
"""

import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from intel_ft.backends import choice, cuda
from intel_ft.backends.cpu import Backend
from intel_ft.bench.task import IPEX_CONTENDERS, OWN_TRAINER, OWN_TRAINERS, Task
from intel_ft.bench.workloads import shape_model, synthetic_examples
from intel_ft.config import BackendConfig, ModelConfig
from intel_ft.distributed.process_group import init_process_group
from intel_ft.distributed.world import World
from intel_ft.host import cpu, devices, topology
from intel_ft.host.allocator import keep_freed_memory
from intel_ft.models import gemm_rate
from intel_ft.models.flops import step_cost
from intel_ft.subprocess_json import answer


def measure(task: Task, world: World, folder: Path) -> dict[str, Any]:
    """Train as the task says and report rates, times and memory, of all ranks of `world` together.

    The GEMM rate is measured after training, on the same threads, by all ranks at once, once the
    peak of resident memory has been read.
    """
    backend = _backend(task, world)
    transformers.set_seed(task.seed)
    examples = synthetic_examples(task.workload, task.seed)
    shapes = shape_model(task.workload, task.rank)
    cost = step_cost(shapes)
    if task.contender in OWN_TRAINERS:
        from intel_ft.bench.own_trainer import exchanged
        from intel_ft.bench.own_trainer import our_trainer as side_trainer
    else:
        from intel_ft.bench.peer_trainers import peer_trainer as side_trainer

    trainer, watch = side_trainer(task, examples, folder, world, backend.optimize)
    trainer.train()
    exchange = exchanged(trainer) if task.contender in OWN_TRAINERS else {}
    rss, gpu = cpu.peak_rss_gib(), devices.peak_gib(backend.device)
    del trainer
    gc.collect()
    devices.reset_peak(backend.device)
    keep_freed_memory()  # the rate is measured alike for all, whatever they trained with
    products = gemm_rate.linear_products(
        shapes, task.workload.row_tokens, float(examples.supervised.mean())
    )
    world.barrier()
    rate = gemm_rate.model_rate(products, backend.dtype, seconds=0.2, device=backend.device)
    times, tally = watch.step_times, watch.tally
    seconds = sum(times)
    own = (len(tally.lengths), sum(tally.lengths), tally.supervised, cost.flops(tally.as_row()))
    total = world.all_reduce(torch.tensor([*own, rate, rss], dtype=torch.float64)).tolist()
    count, tokens, supervised, flops, rate, rss = total
    return {
        "tokens_per_s": tokens / seconds,
        "supervised_tokens_per_s": supervised / seconds,
        "mfu": flops / seconds / rate,
        "peak_rss_gib": rss,
        **gpu,
        "gemm_gflops": rate / 1e9,
        "step_s": float(np.median(times)),
        "step_times": times,
        "steps": len(times),
        "examples": int(count),
        "tokens": int(tokens),
        "supervised_tokens": int(supervised),
        "threads": backend.threads,
        "torch": str(torch.__version__),
        **exchange,
    }


def _backend(task: Task, world: World) -> Backend:
    """What a side computes with. Our own sides get what a run of ours gives itself; a peer the same
    threads, and memory and kernels kept as torch does by itself.
    """
    settings = BackendConfig(threads=task.threads or "auto")
    model = ModelConfig(name_or_path=task.workload.name, dtype="bfloat16")
    place = (world.local_size, world.local_rank)
    if task.contender in IPEX_CONTENDERS:  # backends.ipex has one way for both
        return choice.select(settings, model, "ipex", *place)
    if task.contender == OWN_TRAINER:
        return choice.select(settings, model, task.backend, *place)
    threads = task.threads or topology.read().usable
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else Accelerate sets another
    host = Backend(torch.bfloat16, threads, ())
    return host if task.backend == "cpu" else cuda.select(model, host, world.local_rank)


def main() -> None:
    """Run the task in argv; libraries that print get stderr, stdout is the measurement's alone."""
    task = Task.from_json(sys.argv[1])
    world = World.detect() if task.processes > 1 else World()
    # A peer gets what torch has: oneCCL for CPUs is our own backend.
    collective = BackendConfig(collective="auto" if task.contender in OWN_TRAINERS else "gloo")
    with (
        answer() as stream,
        tempfile.TemporaryDirectory() as folder,
        init_process_group(world, collective, task.backend) as decisions,
    ):
        result = measure(task, world, Path(folder))
        if world.rank == 0:
            name = decisions[0].value if decisions else "none"
            json.dump({**result, "collective": name}, stream)


if __name__ == "__main__":
    main()
