"""One run of one side in a process of its own: `python -m intel_ft.insight.side TASK`, a JSON task
in, a JSON measurement out on stdout; started by insight.bench_train.
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

from intel_ft.backends import choice, cpu, cuda, gemm
from intel_ft.backends.memory import keep_freed_memory
from intel_ft.config import BackendConfig, ModelConfig
from intel_ft.distributed import topology
from intel_ft.distributed.world import World
from intel_ft.errors import IntelFTError
from intel_ft.insight.process import answer
from intel_ft.insight.sides import IPEX_SIDES, OURS, OURS_IPEX, Task
from intel_ft.insight.workloads import shape_model, synthetic_examples
from intel_ft.models.cost import step_cost


def measure(task: Task, folder: Path) -> dict[str, Any]:
    """Train as the task says and report rates, times and memory.

    The GEMM rate is measured after training, on the same threads, once the peak of resident memory
    has been read.
    """
    backend = _backend(task)
    transformers.set_seed(task.seed)
    examples = synthetic_examples(task.workload, task.seed)
    shapes = shape_model(task.workload, task.rank)
    cost = step_cost(shapes)
    if task.side in (OURS, OURS_IPEX):
        from intel_ft.insight.ours import our_trainer

        trainer, watch = our_trainer(task, examples, folder, World(), backend.optimize)
    else:
        from intel_ft.insight.peers import peer_trainer

        trainer, watch = peer_trainer(task, examples, folder, backend.optimize)
    trainer.train()
    peak = {"peak_rss_gib": peak_rss_gib(), **cuda.peak_gib(backend.device)}
    del trainer
    gc.collect()
    cuda.forget_peak(backend.device)
    keep_freed_memory()  # the rate is measured alike for all, whatever they trained with
    products = gemm.linear_products(
        shapes, task.workload.row_tokens, float(examples.supervised.mean())
    )
    rate = gemm.model_rate(products, backend.dtype, seconds=0.2, device=backend.device)
    times, tally = watch.step_times, watch.tally
    seconds = sum(times)
    return {
        "tokens_per_s": sum(tally.lengths) / seconds,
        "supervised_tokens_per_s": tally.supervised / seconds,
        "mfu": cost.flops(tally.as_row()) / seconds / rate,
        **peak,
        "gemm_gflops": rate / 1e9,
        "step_s": float(np.median(times)),
        "step_times": times,
        "steps": len(times),
        "examples": len(tally.lengths),
        "tokens": sum(tally.lengths),
        "supervised_tokens": tally.supervised,
        "threads": backend.threads,
        "torch": str(torch.__version__),
    }


def _backend(task: Task) -> cpu.Backend:
    """What a side computes with. Our own sides get what a run of ours gives itself; a peer the same
    threads, and memory and kernels kept as torch does by itself.
    """
    settings = BackendConfig(threads=task.threads or "auto")
    model = ModelConfig(name_or_path=task.workload.name, dtype="bfloat16")
    if task.side in IPEX_SIDES:  # backends.ipex has one way for both
        return choice.select(settings, model, "ipex")
    if task.side == OURS:
        return choice.select(settings, model, task.backend)
    threads = task.threads or topology.read().usable
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else Accelerate sets another
    host = cpu.Backend(torch.bfloat16, threads, ())
    return host if task.backend == "cpu" else cuda.select(model, host, 0)


def peak_rss_gib() -> float:
    """The most memory this process has had resident, in GiB.

    VmHWM and not ru_maxrss, which a process inherits from the one that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / cpu.GIB
    raise IntelFTError("/proc/self/status has no VmHWM")


def main() -> None:
    """Run the task in argv; libraries that print get stderr, stdout is the measurement's alone."""
    with answer() as stream, tempfile.TemporaryDirectory() as folder:
        json.dump(measure(Task.from_json(sys.argv[1]), Path(folder)), stream)


if __name__ == "__main__":
    main()
