"""Examples of several sets, at given places, as one set; no token is copied."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from intel_ft.templates.examples import ExampleSet, firsts_of


@dataclass(frozen=True, eq=False)
class Selection:
    """Those examples of `sets`, put end to end, that are at `places`, in that order.

    sets: at least one; places: int64 [examples].
    """

    sets: tuple[ExampleSet, ...]
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        place = int(self.places[index])
        number = int(np.searchsorted(self._starts, place, "right")) - 1
        return self.sets[number][place - int(self._starts[number])]

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        return np.cumsum([0, *map(len, self.sets[:-1])], dtype=np.int64)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example, int64 [examples]."""
        return np.concatenate([part.lengths for part in self.sets])[self.places]

    @property
    def supervised_counts(self) -> npt.NDArray[np.int64]:
        """Supervised tokens of each example, int64 [examples]."""
        return np.concatenate([part.supervised_counts for part in self.sets])[self.places]

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """A hash of each example's token ids and mask, uint64 [examples]."""
        return np.concatenate([part.hashes for part in self.sets])[self.places]

    @property
    def prompts(self) -> npt.NDArray[np.uint64]:
        """See ExampleSet."""
        return np.concatenate([part.prompts for part in self.sets])[self.places]

    @property
    def firsts(self) -> npt.NDArray[np.bool_]:
        """Whether an example is the first one of its row of the source, bool [examples]."""
        rows = np.cumsum(np.concatenate([part.firsts for part in self.sets]), dtype=np.int64)
        return firsts_of(rows[self.places])

    @property
    def weights(self) -> npt.NDArray[np.float32] | None:
        """The weight of each example in the training loss, [examples]; None: 1 each."""
        given = [part.weights for part in self.sets]
        if all(weights is None for weights in given):
            return None
        every = [
            np.ones(len(part), np.float32) if weights is None else weights
            for part, weights in zip(self.sets, given, strict=True)
        ]
        return np.concatenate(every)[self.places]

    @property
    def highest_id(self) -> int:
        """The highest token id, also in examples that are not selected."""
        return max(part.highest_id for part in self.sets)

    def ids_beyond(self, limit: int) -> set[int]:
        """Token ids of `limit` and more, also in examples that are not selected."""
        return set().union(*(part.ids_beyond(limit) for part in self.sets))
