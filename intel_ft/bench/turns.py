"""Contenders of a benchmark in turns, so that a change of the machine's speed affects all alike."""

import logging
from collections.abc import Callable
from typing import Any

from intel_ft.bench.task import OWN_TRAINER
from intel_ft.errors import IntelFTError

logger = logging.getLogger(__name__)

Run = dict[str, Any]


def run_in_turns(
    peers: list[str],
    repeat: int,
    run_one: Callable[[str], Run],
    describe: Callable[[Run], str] | None = None,
    own: str = OWN_TRAINER,
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Run the own contender and each peer `repeat` times, one after another.

    Returns the runs of each contender, and why a peer failed; a peer that failed is not run again.
    Raises IntelFTError if the own contender fails.
    """
    runs: dict[str, list[Run]] = {name: [] for name in (own, *peers)}
    failed: dict[str, str] = {}
    for turn in range(1, repeat + 1):
        for contender in [name for name in runs if name not in failed]:
            try:
                run = run_one(contender)
            except IntelFTError as error:
                if contender == own:
                    raise
                failed[contender] = str(error)
                logger.warning("%s: %s", contender, error)
                continue
            runs[contender].append(run)
            result = f": {describe(run)}" if describe else ""
            logger.info("%s, run %d of %d%s", contender, turn, repeat, result)
    return runs, failed
