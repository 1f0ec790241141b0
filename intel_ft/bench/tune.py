"""Which number of ranks trains a config's model fastest on this host, in whole steps of a run."""

import logging
from dataclasses import replace

from intel_ft.bench.run_worker import run_task, with_threads
from intel_ft.bench.task import OWN_TRAINER, Task
from intel_ft.bench.workloads import Workload
from intel_ft.config import Config
from intel_ft.distributed.launch.tune_ranks import keep_tuned, model_shape
from intel_ft.errors import IntelFTError, UserError
from intel_ft.host.topology import Topology

GAIN = 1.02
"""How much faster more ranks must be: they share the base, but each has its own activations."""

_LAYERS = 4  # of the measured model, at most: all layers are alike
_SECONDS = 4.0  # of timed steps, at least five
_MOST = 16  # ranks
_LONGEST = 800  # tokens of a measured example

logger = logging.getLogger(__name__)


def tune(config: Config, topology: Topology) -> list[tuple[int, float | None]]:
    """Token/s of the whole host for each number of ranks that divides its cores, once each.

    A random model of the config's shape with a few of its layers trains on random examples of
    everyday lengths. None for a number that failed. Keeps the best for `launch` and `train`. Raises
    UserError for a model that cannot be made of its shape, IntelFTError if every number failed.
    """
    task, cores = task_of(config), topology.usable
    rates: list[tuple[int, float | None]] = []
    for ranks in [n for n in range(1, min(cores, _MOST) + 1) if cores % n == 0]:
        try:
            result = run_task(with_threads(replace(task, processes=ranks, threads=cores // ranks)))
        except IntelFTError as error:
            logger.warning("%d ranks: %s", ranks, error)
            rates.append((ranks, None))
            continue
        rates.append((ranks, result["tokens_per_s"]))
        logger.info("%d ranks: %.0f token/s", ranks, result["tokens_per_s"])
    ranks, rate = best_of(rates)
    alone = "" if rates[0][1] is None else f", against {rates[0][1]:.0f} with one rank"
    reason = f"measured in whole steps: {rate:.0f} token/s{alone}"
    keep_tuned(topology, config, ranks, reason)
    return rates


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
            f"{config.model.name_or_path}: its config.json has no {error.args[0]}, by which ranks "
            "are measured: set --ranks-per-host"
        ) from None
    if config.base_dtype == "int4" or config.backend.name in ("cuda", "ipex"):
        what = "model.base_dtype=int4" if config.base_dtype == "int4" else "backend.name"
        raise UserError(f"--tune does not measure {what}: set --ranks-per-host")
    rank = getattr(config.method, "r", None) or 16
    return Task(OWN_TRAINER, workload, rank, seconds=_SECONDS, base_dtype=config.base_dtype)
