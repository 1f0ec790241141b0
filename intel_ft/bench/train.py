"""`bench train`: training speed and memory of the own trainer and of other trainers.

Contenders take turns, each run in a fresh process; the report has the medians over the runs.
"""

import statistics
from dataclasses import replace
from typing import Any

import numpy as np

from intel_ft.backends.choice import choose_by_name
from intel_ft.bench import machine
from intel_ft.bench.plausible import why_implausible
from intel_ft.bench.run_worker import run_task, with_threads
from intel_ft.bench.task import OWN_TRAINER, Task, require_peer
from intel_ft.bench.turns import run_in_turns
from intel_ft.errors import UserError

METRICS = (
    "tokens_per_s",
    "supervised_tokens_per_s",
    "mfu",
    "peak_rss_gib",
    "gemm_gflops",
    "step_s",
)
OPTIONAL_METRICS = (
    *("pairs_per_s", "utilization", "register_gflops"),
    *("peak_gpu_gib", "peak_gpu_reserved_gib"),
)
"""Of preferences, of CPUs whose own rate is known, and of GPUs."""


def bench_train(task: Task, peers: list[str], repeat: int) -> dict[str, Any]:
    """Run the own trainer and the peers in turns, `repeat` times each.

    Returns {workload, ours, peers, machine}. A peer that fails is reported as {"error": reason}:
    that is a result, too. `gemm_spread` is the highest GEMM rate of all runs over the lowest, among
    runs with the same version of torch; it is about 1 on an idle machine.

    Raises UserError and EnvironmentProblem before anything runs, IntelFTError if the own trainer
    fails.
    """
    peers = list(dict.fromkeys(peers))
    choose_by_name(task.backend)
    for peer in peers:
        require_peer(peer)
        if task.workload.loss == "dpo" and peer != "trl":
            raise UserError(f"--loss dpo: peer {peer} does not train on pairs here: leave it out")
    task = with_threads(task)
    runs, failed = run_in_turns(
        peers, repeat, lambda contender: run_task(replace(task, contender=contender)), _run_line
    )
    ours = summarize(runs[OWN_TRAINER])
    return {
        "workload": {
            **vars(task.workload),
            "rank": task.rank,
            "seed": task.seed,
            "base_dtype": task.base_dtype,
            "checkpointing": task.checkpointing,
            "peer_checkpointing": task.peer_checkpointing,
            "peer_batch": task.peer_batch,
            "processes": task.processes,
            "peer_row_tokens": task.peer_row_tokens or task.workload.row_tokens,
        },
        OWN_TRAINER: ours,
        "peers": {
            peer: {"error": failed[peer]} if peer in failed else summarize_peer(runs[peer], ours)
            for peer in peers
        },
        "machine": {
            **machine.describe(runs[OWN_TRAINER][0]["threads"], task.backend),
            "gemm_spread": _gemm_spread([run for results in runs.values() for run in results]),
        },
    }


def _gemm_spread(runs: list[dict[str, Any]]) -> float:
    rates: dict[str, list[float]] = {}
    for run in runs:
        rates.setdefault(run["torch"], []).append(run["gemm_gflops"])
    return max(max(same) / min(same) for same in rates.values())


def _run_line(run: dict[str, Any]) -> str:
    """A summary of one run for the log, so that a killed benchmark leaves its results behind."""
    return (
        f"{run['tokens_per_s']:.1f} token/s, MFU {run['mfu']:.3f} of "
        f"{run['gemm_gflops']:.0f} GFLOP/s, peak memory {run['peak_rss_gib']:.2f} GiB"
        + (f", peak GPU memory {run['peak_gpu_gib']:.2f} GiB" if "peak_gpu_gib" in run else "")
    )


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A contender's medians over its runs, the quantiles of all their steps, and the runs.

    `unreliable` has why runs cannot be true, if some cannot.
    """
    metrics = [*METRICS, *(metric for metric in OPTIONAL_METRICS if metric in runs[0])]
    steps = [seconds for run in runs for seconds in run["step_times"]]
    return {
        **{metric: statistics.median(run[metric] for run in runs) for metric in metrics},
        "step_s_p10": float(np.quantile(steps, 0.1)),
        "step_s_p90": float(np.quantile(steps, 0.9)),
        "unreliable": [why for run in runs if (why := why_implausible(run))],
        "runs": [{k: v for k, v in run.items() if k != "step_times"} for run in runs],
    }


def summarize_peer(runs: list[dict[str, Any]], ours: dict[str, Any]) -> dict[str, Any]:
    """A peer's summary, with the ratios of the own trainer's token/s and peak memory to its."""
    peer = summarize(runs)
    return {
        **peer,
        "ratio": ours["tokens_per_s"] / peer["tokens_per_s"],
        "rss_ratio": ours["peak_rss_gib"] / peer["peak_rss_gib"],
    }
