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


def neighbours(order: IntArray, together: IntArray, most: int) -> IntArray:
    """The same order, in which an example is followed by others that belong to it.

    together: of each example the first one that it belongs to (data.prompts), int64 [examples];
    most: examples that follow each other, at most. Where the order has an example again, it follows
    those that are there again, too.
    """
    again, _ = _places_within(order)
    belongs = together[order] + len(together) * again
    within, places = _places_within(belongs)
    heads = np.flatnonzero(within[places] % most == 0)
    head_of = np.empty(len(order), np.int64)
    head_of[places] = np.repeat(places[heads], np.diff(heads, append=len(order)))
    return order[np.argsort(head_of, kind="stable")]


def _places_within(values: IntArray) -> tuple[IntArray, IntArray]:
    """How many equal values precede each one, and the places of all, equal ones in a row."""
    places = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[places], prepend=-1))
    within = np.empty(len(values), np.int64)
    within[places] = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
    return within, places
