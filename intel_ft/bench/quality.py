"""`bench quality`: validation loss on the demo's task, compared with Transformers and peft."""

import logging
import statistics
from typing import Any

from intel_ft import subprocess_json
from intel_ft.errors import UserError
from intel_ft.plurals import count_of

logger = logging.getLogger(__name__)

REFERENCE = "plain"  # the reference trainer
BASE = "base"  # the shipped model: evaluated, not trained
CONTENDERS = (REFERENCE, "bf16", "int8")


def bench_quality(
    contenders: list[str], seeds: int, steps: int, threads: int | None = None
) -> dict[str, Any]:
    """Train each contender with seeds 0, 1, ... in turns, each in a fresh process.

    Returns {steps, seeds, base, sides, machine}. A contender has the mean validation loss in nats
    per supervised token, `to_plain_percent` (None unless `plain` is among the contenders), the
    median token/s, and its runs, one per seed.

    Raises UserError before anything runs, IntelFTError if a contender fails.
    """
    contenders = list(dict.fromkeys(contenders))
    for contender in contenders:
        if contender not in CONTENDERS:
            choices = ", ".join(CONTENDERS)
            raise UserError(f"unknown contender {contender!r}: choose one of {choices}")
    if not contenders or seeds < 1 or steps < 1:
        raise UserError(
            f"{count_of(len(contenders), 'contender')}, {count_of(seeds, 'seed')}, "
            f"{count_of(steps, 'step')}: at least one of each is needed"
        )
    environment = subprocess_json.thread_environment(threads)

    def run(contender: str, seed: int) -> dict[str, Any]:
        arguments = [contender, str(seed), str(steps), str(threads or 0)]
        module = "intel_ft.bench.quality_worker"
        result = subprocess_json.run_module(f"bench {contender}", module, arguments, environment)
        logger.info("%s, seed %d: validation loss %.4f", contender, seed, result["heldout_loss"])
        return {"seed": seed, **result}

    base = run(BASE, 0)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for seed in range(seeds):
        for contender in contenders:
            runs[contender].append(run(contender, seed))
    from intel_ft.bench import machine  # imported after the runs: it loads torch

    return {
        "steps": steps,
        "seeds": seeds,
        BASE: {"heldout_loss": base["heldout_loss"]},
        "sides": compared(runs),
        "machine": machine.describe(base["threads"]),
    }


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each contender's mean loss, its difference from the reference trainer's in %, its speed."""
    means = {
        contender: statistics.fmean(run["heldout_loss"] for run in results)
        for contender, results in runs.items()
    }
    return {
        contender: {
            "heldout_loss": mean,
            "to_plain_percent": 100 * (mean / means[REFERENCE] - 1) if REFERENCE in means else None,
            "tokens_per_s": statistics.median(run["tokens_per_s"] for run in runs[contender]),
            "runs": runs[contender],
        }
        for contender, mean in means.items()
    }
