"""One run of one contender in its own processes: `python -m intel_ft.bench.worker TASK`.

The task is JSON in the arguments; rank 0 prints the measurement as JSON on stdout.
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
from intel_ft.config_sections import BackendConfig, ModelConfig
from intel_ft.distributed.process_group import init_process_group
from intel_ft.distributed.world import World
from intel_ft.host import cpu, devices, topology
from intel_ft.host.allocator import keep_freed_memory
from intel_ft.kernels.gemm.register_rate import register_rate
from intel_ft.models import gemm_rate
from intel_ft.models.flops import step_cost
from intel_ft.subprocess_json import result_stream


def measure(task: Task, world: World, folder: Path) -> dict[str, Any]:
    """Train as the task says; returns rates, times and memory of all ranks of `world` together.

    The GEMM rate is measured last, by all ranks at once and on the same threads: after training,
    and after the peak of resident memory has been read.
    """
    backend = _backend(task, world)
    transformers.set_seed(task.seed)
    examples = synthetic_examples(task.workload, task.seed)
    shapes = shape_model(task.workload, task.rank)
    cost = step_cost(shapes)
    exchange = {}
    trainer: Any
    if task.contender in OWN_TRAINERS:
        from intel_ft.bench.own_trainer import exchange_facts, own_trainer

        trainer, timer = own_trainer(task, examples, folder, world, backend)
        trainer.train()
        exchange = exchange_facts(trainer)
    else:
        from intel_ft.bench.peer_trainers import peer_trainer

        trainer, timer = peer_trainer(task, examples, folder, world, backend.optimize)
        trainer.train()
    rss, gpu = cpu.peak_rss_gib(), devices.peak_gib(backend.device)
    del trainer
    gc.collect()
    devices.reset_peak(backend.device)
    keep_freed_memory()  # for a rate that is measured alike, whatever the contender
    products = gemm_rate.linear_gemms(
        shapes, task.workload.row_tokens, float(examples.supervised.mean())
    )
    world.barrier()
    seconds = min(0.2, task.seconds / 50)  # for a GEMM: a short run measures its limit shortly
    rate = gemm_rate.model_rate(products, backend.dtype, seconds, device=backend.device)
    limit = None if backend.device.type != "cpu" else register_rate(_frozen_dtype(task, backend))
    registers = 0.0 if limit is None else limit.rate
    times, tally = timer.step_times, timer.tally
    seconds = sum(times)
    work = (len(tally.lengths), sum(tally.lengths), tally.supervised, cost.flops(tally.as_row()))
    own = (*work, rate, registers, rss)
    summed = world.all_reduce(torch.tensor(own, dtype=torch.float64)).tolist()
    count, tokens, supervised, flops, rate, registers, rss = summed
    limits = {}
    if registers:
        limits = {"utilization": flops / seconds / registers, "register_gflops": registers / 1e9}
    return {
        "tokens_per_s": tokens / seconds,
        "supervised_tokens_per_s": supervised / seconds,
        "mfu": flops / seconds / rate,
        "peak_rss_gib": rss,
        **gpu,
        "gemm_gflops": rate / 1e9,
        **limits,
        "step_s": float(np.median(times)),
        "step_times": times,
        "steps": len(times),
        "examples": int(count),
        **({"pairs_per_s": count / 2 / seconds} if task.workload.loss == "dpo" else {}),
        "tokens": int(tokens),
        "supervised_tokens": int(supervised),
        "threads": backend.threads,
        "torch": str(torch.__version__),
        **exchange,
    }


def _frozen_dtype(task: Task, backend: Backend) -> torch.dtype:
    """The dtype that the contender's frozen GEMMs multiply in."""
    is_int8 = task.contender == OWN_TRAINER and task.base_dtype == "int8"
    return torch.int8 if is_int8 else backend.dtype


def _backend(task: Task, world: World) -> Backend:
    """What a contender computes with.

    The own trainers get what a run decides; a peer gets the same threads, and torch's defaults for
    the allocator and for cached kernels.
    """
    settings = BackendConfig(threads=task.threads or "auto")
    model = ModelConfig(name_or_path=task.workload.name, dtype="bfloat16")
    name = "ipex" if task.contender in IPEX_CONTENDERS else task.backend
    if task.contender in (OWN_TRAINER, *IPEX_CONTENDERS):
        mixture, place = task.workload.experts > 0, (world.local_size, world.local_rank)
        return choice.select(settings, model, name, *place, mixture=mixture)
    threads = task.threads or topology.read().usable
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # or Accelerate sets another number
    host = Backend(torch.bfloat16, threads, ())
    return host if task.backend == "cpu" else cuda.select(model, host, world.local_rank)


def main() -> None:
    """Run the task in argv; whatever libraries print goes to stderr, the measurement to stdout."""
    task = Task.from_json(sys.argv[1])
    world = World.detect() if task.processes > 1 else World()
    # A peer gets torch's own collectives: oneCCL for CPUs is a backend of this package.
    collective = BackendConfig(collective="auto" if task.contender in OWN_TRAINERS else "gloo")
    with (
        result_stream() as stream,
        tempfile.TemporaryDirectory() as folder,
        init_process_group(world, collective, task.backend) as decisions,
    ):
        result = measure(task, world, Path(folder))
        if world.rank == 0:
            name = decisions[0].value if decisions else "none"
            json.dump({**result, "collective": name}, stream)


if __name__ == "__main__":
    main()
