"""Groups the examples of a step so that those with a common beginning come into one row."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from intel_ft.batching.forest import Segment, forest_of, sort_sequences
from intel_ft.batching.share import pack_evenly, split_by_cost
from intel_ft.templates.answers import segments_in
from intel_ft.templates.examples import ExampleSet

IntArray = npt.NDArray[np.int64]

_PARTS = (1, 2, 4, 8)  # sizes of groups that are tried: what a rank or row takes, half of it, ...
_ROW_TOKENS = 256  # what one more row costs, in tokens: short GEMMs are slower


class Families:
    """Some examples, each one or two sequences, and what their sequences have in common.

    Examples are named by their place in `indices`. quadratic_cost: as in Plan.
    """

    def __init__(self, examples: ExampleSet, indices: IntArray, quadratic_cost: float) -> None:
        of_sequences, places = segments_in(examples, indices)
        sequences = [of_sequences[int(place)][0] for place in places]
        self._count = len(indices)
        self._each = len(sequences) // max(1, self._count)
        self._quadratic_cost = quadratic_cost
        order, self._common = sort_sequences(sequences)
        self._lengths = [len(sequences[index]) for index in order]
        self._rank = np.argsort(np.array(order, dtype=np.int64)).tolist()
        # The examples in the order of their first sequences.
        self._sorted = sorted(range(self._count), key=lambda one: self._rank[one * self._each])

    @cached_property
    def saved(self) -> int:
        """Tokens that are not computed again if all of these examples are one row."""
        return sum(self._lengths) - self.tokens(range(self._count))

    def segments(self) -> list[tuple[int, int]]:
        """Of each segment of all of these examples as one row, its first position and its end."""
        return [(one.start, one.end) for one in self._segments(range(self._count))]

    def tokens(self, examples: Iterable[int]) -> int:
        """Tokens that a row of these examples computes."""
        return sum(segment.end - segment.start for segment in self._segments(examples))

    def cost(self, examples: Iterable[int]) -> float:
        """What a row of these examples costs, a token's linear cost being 1."""
        return sum(self._until(s.end) - self._until(s.start) for s in self._segments(examples))

    def shares(self, world_size: int) -> list[list[int]]:
        """The examples of each rank: of several ways to group them the one that is done first."""
        if world_size == 1:
            return [list(range(self._count))]
        whole = self.cost(range(self._count)) / world_size
        best, least = None, (float("inf"), 0.0)
        for limit in self._limits(whole):
            groups = self._groups(self._sorted, limit, self.cost)
            parts = split_by_cost([self.cost(group) for group in groups], world_size)
            shares = [sorted(one for part in rank for one in groups[part]) for rank in parts]
            costs = [self.cost(share) for share in shares]
            if (score := (max(costs), sum(costs))) < least:
                best, least = shares, score
        assert best is not None
        return best

    def rows(self, capacity: int) -> list[list[int]]:
        """The examples of each row, none over `capacity` tokens: the way that computes least."""
        best: list[list[int]] = []
        least = float("inf")
        for limit in self._limits(capacity):
            groups = self._groups(self._sorted, limit, self.tokens)
            packed = pack_evenly([self.tokens(group) for group in groups], capacity)
            rows = [
                one
                for row in packed
                for one in self._fitting([groups[part] for part in row], capacity)
            ]
            score = sum(map(self.tokens, rows)) + _ROW_TOKENS * len(rows)
            if score < least:
                best, least = rows, score
        return best

    def _fitting(self, groups: list[list[int]], capacity: int) -> list[list[int]]:
        """The groups as one row, or as several: together they can save a little less than apart."""
        row = sorted(one for group in groups for one in group)
        if len(groups) == 1 or self.tokens(row) <= capacity:
            return [row]
        half = len(groups) // 2
        return self._fitting(groups[:half], capacity) + self._fitting(groups[half:], capacity)

    def _until(self, tokens: int) -> float:
        return tokens + self._quadratic_cost * tokens**2

    def _limits(self, whole: float) -> list[float]:
        return [*(whole / part for part in _PARTS), 0.0]

    def _segments(self, examples: Iterable[int]) -> list[Segment]:
        """The forest of these examples' sequences."""
        each = range(self._each)
        ranks = sorted(self._rank[one * self._each + which] for one in examples for which in each)
        common = [0] * len(ranks)
        for place in range(1, len(ranks)):
            common[place] = min(self._common[ranks[place - 1] + 1 : ranks[place] + 1])
        return forest_of([self._lengths[rank] for rank in ranks], common)

    def _groups(
        self, examples: Sequence[int], limit: float, size: Callable[[Sequence[int]], float]
    ) -> list[list[int]]:
        """Neighbours in groups of at most `limit`, cut where they share least; or single ones."""
        groups: list[list[int]] = []
        waiting = [list(examples)]
        while waiting:
            group = waiting.pop()
            if len(group) < 2 or size(group) <= limit:
                groups += [group] if group else []
                continue
            cut = self._cut(group)
            waiting += [group[cut:], group[:cut]]
        return groups

    def _cut(self, group: Sequence[int]) -> int:
        """Where neighbours of a group share least; of several such places the one in the middle."""
        ranks = [self._rank[one * self._each] for one in group]
        shared = [min(self._common[a + 1 : b + 1]) for a, b in pairwise(ranks)]
        least = min(shared)
        places = [place + 1 for place, common in enumerate(shared) if common == least]
        middle = bisect_left(places, len(group) / 2)
        near = places[max(0, middle - 1) : middle + 1]
        return min(near, key=lambda place: abs(place - len(group) / 2))
