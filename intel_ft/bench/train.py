"""`bench train`: each side in a fresh process, in turns, and the report of their medians; called
from cli.bench.
"""

import logging
import statistics
from dataclasses import replace
from typing import Any

from intel_ft.backends.choice import choose_by_name
from intel_ft.bench import machine
from intel_ft.bench.run_worker import placed, run_task
from intel_ft.bench.task import OWN_TRAINER, Task, require_peer
from intel_ft.errors import IntelFTError

logger = logging.getLogger(__name__)

METRICS = (
    "tokens_per_s",
    "supervised_tokens_per_s",
    "mfu",
    "peak_rss_gib",
    "gemm_gflops",
    "step_s",
)
GPU_METRICS = ("peak_gpu_gib", "peak_gpu_reserved_gib")


def bench_train(task: Task, peers: list[str], repeat: int) -> dict[str, Any]:
    """Run ours and the peers in turns, `repeat` times each: {workload, ours, peers, machine}.

    Raises UserError and EnvironmentProblem before anything runs, IntelFTError where our own side
    fails. A peer that fails is reported as {"error": reason}, for that is a result too.
    `gemm_spread` is the highest GEMM rate of all runs over the lowest, among those of one torch: 1
    on an idle machine.
    """
    peers = list(dict.fromkeys(peers))
    choose_by_name(task.backend)
    for peer in peers:
        require_peer(peer)
    task = placed(task)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in (OWN_TRAINER, *peers)}
    failed: dict[str, str] = {}
    for turn in range(1, repeat + 1):
        for side in [side for side in runs if side not in failed]:
            try:
                run = run_task(replace(task, contender=side))
            except IntelFTError as error:
                if side == OWN_TRAINER:
                    raise
                failed[side] = str(error)
                logger.warning("%s: %s", side, error)
                continue
            runs[side].append(run)
            logger.info("%s %d/%d: %s", side, turn, repeat, _line(run))
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
            peer: {"error": failed[peer]} if peer in failed else against(ours, runs[peer])
            for peer in peers
        },
        "machine": {
            **machine.describe(runs[OWN_TRAINER][0]["threads"], task.backend),
            "gemm_spread": _spread([run for side in runs.values() for run in side]),
        },
    }


def _spread(runs: list[dict[str, Any]]) -> float:
    rates: dict[str, list[float]] = {}
    for run in runs:
        rates.setdefault(run["torch"], []).append(run["gemm_gflops"])
    return max(max(same) / min(same) for same in rates.values())


def _line(run: dict[str, Any]) -> str:
    """A run in short, for who watches, and for what is left of a benchmark that was killed."""
    return (
        f"{run['tokens_per_s']:.1f} token/s, MFU {run['mfu']:.3f} of "
        f"{run['gemm_gflops']:.0f} GFLOP/s, {run['peak_rss_gib']:.2f} GiB"
        + (f", {run['peak_gpu_gib']:.2f} GiB of the GPU" if "peak_gpu_gib" in run else "")
    )


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over a side's runs, the spread of all their steps, and the runs themselves."""
    metrics = [*METRICS, *(metric for metric in GPU_METRICS if metric in runs[0])]
    steps = sorted(seconds for run in runs for seconds in run["step_times"])
    return {
        **{metric: statistics.median(run[metric] for run in runs) for metric in metrics},
        "step_s_p10": _quantile(steps, 0.1),
        "step_s_p90": _quantile(steps, 0.9),
        "runs": [{k: v for k, v in run.items() if k != "step_times"} for run in runs],
    }


def against(ours: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A peer's summary, with our token/s over its own and our peak memory over its own."""
    peer = summarize(runs)
    return {
        **peer,
        "ratio": ours["tokens_per_s"] / peer["tokens_per_s"],
        "rss_ratio": ours["peak_rss_gib"] / peer["peak_rss_gib"],
    }


def _quantile(ordered: list[float], share: float) -> float:
    """Linear between the two nearest values, as numpy's."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
