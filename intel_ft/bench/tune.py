"""Which number of ranks trains a config's model fastest on this host, in whole steps of a run."""

import logging
from dataclasses import replace
from typing import Any

from intel_ft.bench.plausible import why_implausible
from intel_ft.bench.run_worker import run_task, with_threads
from intel_ft.bench.task import OWN_TRAINER, Task
from intel_ft.bench.workloads import Workload
from intel_ft.config import Config
from intel_ft.distributed.launch.tune_ranks import keep_tuned, model_shape
from intel_ft.errors import IntelFTError, UserError
from intel_ft.host.topology import Topology
from intel_ft.plurals import count_of

GAIN = 1.02
"""How much faster more ranks must be: they share the base, but each has its own activations."""

_LAYERS = 4  # of the measured model, at most: all layers are alike
_SECONDS = 4.0  # of timed steps, at least five
_MOST = 16  # ranks
_LONGEST = 800  # tokens of a measured example
_FAR_OFF = 4.0
"""A step over its GEMMs' time that is so many times the best one's is measured again."""

logger = logging.getLogger(__name__)


def tune(config: Config, topology: Topology) -> list[tuple[int, float | None]]:
    """Token/s of the whole host for each number of ranks that divides its cores, once each.

    A random model of the config's shape with a few of its layers trains on random examples of
    everyday lengths. A result that cannot be true, or is far off the others, is measured again.
    None for a number that failed, or was implausible twice. Keeps the best for `launch` and
    `train`. Raises UserError for a model that cannot be made of its shape, IntelFTError if every
    number failed.
    """
    task, cores = task_of(config), topology.usable
    counts = [n for n in range(1, min(cores, _MOST) + 1) if cores % n == 0]
    tasks = {n: replace(task, processes=n, threads=cores // n) for n in counts}
    results = {ranks: _plausible(one) for ranks, one in tasks.items()}
    fastest = max((run.get("mfu", 0.0) for run in results.values() if run), default=0.0)
    for ranks, run in results.items():
        if run is not None and run.get("mfu", fastest) * _FAR_OFF < fastest:
            logger.warning(
                "%s: a step took %.0f times as long as its GEMMs, with other numbers of "
                "ranks %.1f times: measured again",
                *(count_of(ranks, "rank"), 1 / max(run["mfu"], 1e-9), 1 / fastest),
            )
            again = _plausible(tasks[ranks])
            results[ranks] = max((run, again or run), key=lambda one: float(one["tokens_per_s"]))
    rates = [
        (ranks, None if run is None else run["tokens_per_s"]) for ranks, run in results.items()
    ]
    ranks, rate = best_of(rates)
    alone = "" if rates[0][1] is None else f", against {rates[0][1]:.0f} with one rank"
    reason = f"measured in whole steps: {rate:.0f} token/s{alone}"
    keep_tuned(topology, config, ranks, reason)
    return rates


def _plausible(task: Task) -> dict[str, Any] | None:
    """The result of a run; of a second one if the first cannot be true. None if there is none."""
    for remedy in ("measured again", "discarded"):
        try:
            result = run_task(with_threads(task))
        except IntelFTError as error:
            logger.warning("%s: %s", count_of(task.processes, "rank"), error)
            return None
        why = why_implausible(result)
        if why is None:
            logger.info(
                "%s: %.0f token/s", count_of(task.processes, "rank"), result["tokens_per_s"]
            )
            return result
        logger.warning(
            "%s: implausible result, %s: %s", count_of(task.processes, "rank"), remedy, why
        )
    return None


def best_of(rates: list[tuple[int, float | None]]) -> tuple[int, float]:
    """The fewest ranks than which no number is `GAIN` times as fast. Raises IntelFTError."""
    measured = [(ranks, rate) for ranks, rate in rates if rate is not None]
    if not measured:
        raise IntelFTError("no number of ranks could be measured: see the warnings above")
    fastest = max(rate for _, rate in measured)
    return next((ranks, rate) for ranks, rate in measured if rate * GAIN >= fastest)


def task_of(config: Config) -> Task:
    """The benchmark's run that stands for the config's. Raises UserError."""
    shape, row = model_shape(config), config.train.max_tokens_per_row
    try:
        workload = Workload(
            name=config.model.name_or_path,
            hidden=shape["hidden_size"],
            intermediate=shape.get("moe_intermediate_size") or shape["intermediate_size"],
            layers=min(_LAYERS, shape["num_hidden_layers"]),
            heads=shape["num_attention_heads"],
            kv_heads=shape.get("num_key_value_heads") or shape["num_attention_heads"],
            vocabulary=shape["vocab_size"],
            row_tokens=max(_LONGEST, row if isinstance(row, int) else 2048),
            batch=config.train.global_batch_size,
            experts=shape.get("num_experts", 0),
            active=shape.get("num_experts_per_tok", 0),
            head_dim=shape.get("head_dim"),
        )
    except KeyError as error:
        raise UserError(
            f"{config.model.name_or_path}: its config.json has no {error.args[0]}, which --tune"
            " needs: set --ranks-per-host"
        ) from None
    if config.base_dtype == "int4" or config.backend.name in ("cuda", "ipex"):
        what = "model.base_dtype=int4" if config.base_dtype == "int4" else "backend.name"
        raise UserError(f"--tune does not measure {what}: set --ranks-per-host")
    rank = getattr(config.method, "r", None) or 16
    return Task(OWN_TRAINER, workload, rank, seconds=_SECONDS, base_dtype=config.base_dtype)
