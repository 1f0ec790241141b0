"""The order of an epoch's examples: from (seed, epoch) alone, also where sources have weights."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from intel_ft.data.mixture import Part

IntArray = npt.NDArray[np.int64]

_PASSES = 1  # keeps the seeds of a source's passes apart from those of epochs


def epoch_order(seed: int, epoch: int, examples: int, parts: Sequence[Part] = ()) -> IntArray:
    """The examples of an epoch, each an index, int64 [examples].

    Without `parts` a permutation of all. With them, each source's part (data.mixture), whose
    examples follow those of the source before, in a random order.
    """
    random = np.random.default_rng([seed, epoch])
    if not parts:
        return random.permutation(examples)
    chosen, first = [], 0
    for number, part in enumerate(parts):
        start = epoch * part.per_epoch
        chosen.append(first + _passes(seed, number, part, start, start + part.per_epoch))
        first += part.examples
    return random.permutation(np.concatenate(chosen))


def _passes(seed: int, number: int, part: Part, start: int, end: int) -> IntArray:
    """Places `start` to `end - 1` of endless passes over a source, each in an order of its own."""
    first, last = start // part.examples, (end - 1) // part.examples
    orders = [
        np.random.default_rng([seed, number, one, _PASSES]).permutation(part.examples)
        for one in range(first, last + 1)
    ]
    begin = start - first * part.examples
    return np.concatenate(orders)[begin : begin + end - start]
