"""`bench ranks`: weak and strong scaling over ranks of one host, started by a real launcher."""

import logging
import statistics
from dataclasses import replace
from typing import Any

from intel_ft.backends.choice import choose_by_name
from intel_ft.bench import machine
from intel_ft.bench.plausible import why_implausible
from intel_ft.bench.run_worker import run_ranks
from intel_ft.bench.sweep_values import whole_numbers
from intel_ft.bench.task import Task
from intel_ft.errors import UserError
from intel_ft.host import topology
from intel_ft.plurals import count_of

logger = logging.getLogger(__name__)

SCALINGS = ("weak", "strong")
_METRICS = ("tokens_per_s", "mfu", "gemm_gflops", "step_s", "exchange_share", "rank_imbalance")


def values_of(text: str | None, cores: int) -> list[int]:
    """The numbers of ranks to run, sorted: those in `text`, or all powers of two that fit.

    Raises UserError for anything but whole numbers, and for more ranks than the host has cores for.
    """
    usable = topology.read().usable
    max_ranks = usable // cores
    if max_ranks < 1:
        raise UserError(f"--cores {cores}: this process may use {count_of(usable, 'core')}")
    if text is None:
        return [2**n for n in range(max_ranks.bit_length())]
    values = whole_numbers(text, "1,2,4")
    if values[-1] > max_ranks:
        raise UserError(
            f"--values {text}: this host has room for 1 to {count_of(max_ranks, 'rank')} of "
            f"{count_of(cores, 'core')} each"
        )
    return values


def bench_ranks(task: Task, values: list[int], cores: int, via: str, repeat: int) -> dict[str, Any]:
    """Measure weak scaling (constant examples per rank) and strong scaling (constant batch).

    Returns {workload, cores, weak, strong, machine}; weak and strong are lists of points with
    `ranks`, the medians of a run's measurements, and `efficiency`: token/s per rank, relative to
    that of the smallest number of ranks, and why runs are `unreliable`, if some are.

    The batch is 4 times the workload's for each rank of the smallest number of ranks, so that a
    step has several rows to distribute; in strong scaling it stays that large. Raises UserError,
    EnvironmentProblem, and IntelFTError if a run fails.
    """
    batch = 4 * task.workload.batch * values[0]
    choose_by_name(task.backend)
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for turn in range(1, repeat + 1):
        for scaling in SCALINGS:
            for ranks in values:
                if scaling == "strong" and ranks == values[0]:
                    continue  # the same as in weak scaling
                examples = batch * ranks // values[0] if scaling == "weak" else batch
                larger = replace(task, workload=replace(task.workload, batch=examples))
                run = run_ranks(replace(larger, processes=ranks, threads=cores), via)
                runs.setdefault((scaling, ranks), []).append(run)
                metrics = ", ".join(f"{name} {run[name]:.4g}" for name in _METRICS)
                logger.info(
                    "%s scaling, %s, run %d of %d: %s",
                    scaling,
                    count_of(ranks, "rank"),
                    turn,
                    repeat,
                    metrics,
                )
    first = runs["weak", values[0]][0]
    runs["strong", values[0]] = runs["weak", values[0]]
    return {
        "workload": task.workload.name,
        "batch": batch,
        "row_tokens": task.workload.row_tokens,
        "cores": cores,
        "collective": runs["weak", values[-1]][0]["collective"],
        "gradient_mib": first["gradient_mib"],
        **{scaling: _points({n: runs[scaling, n] for n in values}) for scaling in SCALINGS},
        "machine": machine.describe(first["threads"], task.backend),
    }


def _points(runs: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for ranks, results in runs.items():
        medians = {name: statistics.median(r[name] for r in results) for name in _METRICS}
        per_rank = medians["tokens_per_s"] / ranks
        base = points[0]["tokens_per_s"] / points[0]["ranks"] if points else per_rank
        rates = [result["tokens_per_s"] for result in results]
        unreliable = [why for result in results if (why := why_implausible(result))]
        efficiency = {"efficiency": per_rank / base, "rates": rates, "unreliable": unreliable}
        points.append({"ranks": ranks, **medians, **efficiency})
    return points
