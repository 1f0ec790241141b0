"""Beginnings that sequences have in common, as a forest of segments that are computed once.

An example with four sequences of 60, 60, 40 and 20 tokens. The first two share 50 tokens, the third
shares 30 with them, and the fourth shares none:

    segment  parent  tokens    sequences
    0        -1      0 to 30   0, 1, 2
    1         0      30 to 50  0, 1
    2         1      50 to 60  0
    3         1      50 to 60  1
    4         0      30 to 40  2
    5        -1      0 to 20   3

A sequence is the chain from a root to its last segment; `tokens` are places in it. Parents come
before their children, and the segments of one tree are neighbours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LEAST_GAIN = 16
"""Tokens that a segment must save to be split off: each one costs attention a block of its own."""


class Segment(NamedTuple):
    """Tokens `start` to `end` of sequences `first` to `last - 1`, which follow segment `parent`."""

    start: int
    end: int
    parent: int
    first: int
    last: int


def sort_sequences(sequences: Sequence[npt.NDArray[np.int32]]) -> tuple[list[int], list[int]]:
    """The order in which neighbours share most, and how many tokens each shares with the last one.

    The order is lexicographic by token ids; the first sequence shares 0.
    """
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]  # compares as the ids do
    order = sorted(range(len(keys)), key=lambda index: (keys[index], index))
    common = [0] * len(order)
    for place in range(1, len(order)):
        one, other = sequences[order[place - 1]], sequences[order[place]]
        least = min(len(one), len(other))
        different = one[:least] != other[:least]
        common[place] = int(different.argmax()) if different.any() else least
    return order, common


def forest_of(lengths: Sequence[int], common: Sequence[int]) -> list[Segment]:
    """The segments of sorted sequences; `common` as `sort_sequences` returns it.

    A sequence that ends where others continue has no segment of its own.
    """
    segments: list[Segment] = []
    waiting = [(0, len(lengths), 0, -1)] if lengths else []
    while waiting:
        first, last, start, parent = waiting.pop()
        count = last - first
        end = lengths[first] if count == 1 else min(common[first + 1 : last])
        if (end - start) * (count - 1) >= LEAST_GAIN or (count == 1 and end > start):
            segments.append(Segment(start, end, parent, first, last))
            start, parent = end, len(segments) - 1
        if count > 1:
            cuts = [place for place in range(first + 1, last) if common[place] == end]
            parts = zip([first, *cuts], [*cuts, last], strict=True)
            waiting += [(a, b, start, parent) for a, b in reversed(list(parts))]
    return segments
