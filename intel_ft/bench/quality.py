"""`bench quality`: the held-out loss that our training reaches on the demo's task, beside plain
Transformers and peft; called from cli.bench.
"""

import logging
import statistics
from typing import Any

from intel_ft import subprocess_json
from intel_ft.errors import UserError

logger = logging.getLogger(__name__)

REFERENCE = "plain"
BASE = "base"  # the model as it is shipped: measured, not trained
CONTENDERS = (REFERENCE, "bf16", "int8")


def bench_quality(
    sides: list[str], seeds: int, steps: int, threads: int | None = None
) -> dict[str, Any]:
    """Train each side with seeds 0, 1, ... in turns, each in a fresh process: {steps, seeds, base,
    sides, machine}.

    A side has the mean held-out loss in nats a supervised token, `to_plain_percent` (None without
    `plain` among the sides), the median token/s, and its runs, one a seed.

    Raises UserError before anything runs, IntelFTError where a side fails.
    """
    sides = list(dict.fromkeys(sides))
    for side in sides:
        if side not in CONTENDERS:
            raise UserError(f"no side {side!r}: choose one of {', '.join(CONTENDERS)}")
    if not sides or seeds < 1 or steps < 1:
        raise UserError(f"{len(sides)} sides, {seeds} seeds, {steps} steps: take at least one each")
    environment = subprocess_json.environment(threads)

    def run(side: str, seed: int) -> dict[str, Any]:
        arguments = [side, str(seed), str(steps), str(threads or 0)]
        module = "intel_ft.bench.quality_worker"
        result = subprocess_json.measured(side, module, arguments, environment)
        logger.info("%s, seed %d: held-out loss %.4f", side, seed, result["heldout_loss"])
        return {"seed": seed, **result}

    base = run(BASE, 0)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(seeds):
        for side in sides:
            runs[side].append(run(side, seed))
    from intel_ft.bench import machine  # after the runs: nothing heavy beside them

    return {
        "steps": steps,
        "seeds": seeds,
        BASE: {"heldout_loss": base["heldout_loss"]},
        "sides": compared(runs),
        "machine": machine.describe(base["threads"]),
    }


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each side's mean loss over the seeds, its difference to plain's in per cent, its speed."""
    means = {s: statistics.fmean(run["heldout_loss"] for run in runs[s]) for s in runs}
    return {
        side: {
            "heldout_loss": mean,
            "to_plain_percent": 100 * (mean / means[REFERENCE] - 1) if REFERENCE in means else None,
            "tokens_per_s": statistics.median(run["tokens_per_s"] for run in runs[side]),
            "runs": runs[side],
        }
        for side, mean in means.items()
    }
