"""`bench scale`: the own trainer over row lengths, batches, LoRA ranks, threads or processes.

Every value is measured in a fresh process.
"""

import logging
import os
from dataclasses import replace
from typing import Any

from intel_ft.bench import machine
from intel_ft.bench.run_worker import run_task, with_threads
from intel_ft.bench.sweep_values import whole_numbers
from intel_ft.bench.task import OWN_TRAINER, Task
from intel_ft.bench.train import summarize
from intel_ft.bench.workloads import workload
from intel_ft.errors import IntelFTError, UserError

logger = logging.getLogger(__name__)

VALUES = {
    "row-tokens": (256, 512, 1024, 2048, 4096, 8192),
    "batch": (1, 2, 4, 8, 16, 32, 64),
    "rank": (8, 16, 32, 64, 128, 256),
    "threads": (),  # powers of two up to the cores
    "processes": (),  # the same
}
PLOTTED = {"token/s": "tokens_per_s", "MFU": "mfu"}


def values_of(over: str, text: str | None) -> list[int]:
    """The values in `text` (comma-separated), sorted and unique, or the defaults of `over`.

    Raises UserError for an unknown axis, and for values that are not positive whole numbers.
    """
    if over not in VALUES:
        raise UserError(f"--over {over}: choose one of {', '.join(VALUES)}")
    if text is None:
        cores = len(os.sched_getaffinity(0))
        return list(VALUES[over]) or [2**n for n in range(cores.bit_length())]
    return whole_numbers(text, "256,512")


def task_at(over: str, value: int, name: str, seconds: float, threads: int | None) -> Task:
    """The run at one value of an axis.

    Over row-tokens a step is one row with one example that fills it. The other axes keep the
    workload's alpaca lengths and row length.
    """
    task = Task(contender=OWN_TRAINER, workload=workload(name), seconds=seconds, threads=threads)
    if over == "row-tokens":
        return replace(task, workload=workload(name, "fixed", row_tokens=value))
    if over == "batch":
        return replace(task, workload=workload(name, batch=value))
    if over == "threads":
        return replace(task, threads=value)
    return replace(task, rank=value) if over == "rank" else replace(task, processes=value)


def bench_scale(
    name: str, over: str, values: list[int], repeat: int, seconds: float, threads: int | None
) -> dict[str, Any]:
    """Run workload `name` at each value, `repeat` rounds over all values.

    Returns {workload, over, points, machine}. A point has its "value" and the medians of bench
    train's metrics, or {"error": reason}: a value that does not fit in memory is a result, too.
    Raises UserError before anything runs, IntelFTError if every value failed.
    """
    tasks = {value: with_threads(task_at(over, value, name, seconds, threads)) for value in values}
    runs: dict[int, list[dict[str, Any]]] = {value: [] for value in values}
    failed: dict[int, str] = {}
    for turn in range(1, repeat + 1):
        for value in [value for value in values if value not in failed]:
            try:
                run = run_task(tasks[value])
            except IntelFTError as error:
                failed[value] = str(error)
                logger.warning("%s %d: %s", over, value, error)
                continue
            runs[value].append(run)
            rate = run["tokens_per_s"]
            logger.info("%s %d, run %d of %d: %.1f token/s", over, value, turn, repeat, rate)
    succeeded = [value for value in values if value not in failed]
    if not succeeded:
        raise IntelFTError(failed[values[0]])
    rates = [[run["gemm_gflops"] for run in runs[value]] for value in succeeded]
    return {
        "workload": name,
        "over": over,
        "points": [
            {
                "value": value,
                **({"error": failed[value]} if value in failed else summarize(runs[value])),
            }
            for value in values
        ],
        "machine": {
            **machine.describe(max(runs[value][0]["threads"] for value in succeeded)),
            "gemm_spread": max(max(rate) / min(rate) for rate in rates),
        },
    }


def plotted(report: dict[str, Any]) -> str:
    """The report as an SVG plot of token/s and MFU over the values that ran."""
    from intel_ft.plot import line_plot

    points = [point for point in report["points"] if "error" not in point]
    return line_plot(
        f"{report['workload']}: token/s and MFU over {report['over'].replace('-', ' ')}",
        report["over"].replace("-", " "),
        [point["value"] for point in points],
        {title: [point[metric] for point in points] for title, metric in PLOTTED.items()},
    )
