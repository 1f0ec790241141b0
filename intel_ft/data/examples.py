"""Tokenized examples as three flat arrays: what data/ passes to batching/ and training/."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Examples:
    """Token ids of all examples end to end, with a mask of the supervised ones.

    tokens: int32 [total]; supervised: bool [total], True where the token is a prediction target
    (its loss is read at the position before it, so an example's first token is never supervised);
    offsets: int64 [examples + 1], example i is tokens[offsets[i]:offsets[i + 1]].
    """

    tokens: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[part], self.supervised[part]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example, int64 [examples]."""
        return np.diff(self.offsets)

    @property
    def supervised_counts(self) -> npt.NDArray[np.int64]:
        """Supervised tokens of each example, int64 [examples]."""
        ends = np.concatenate(([0], np.cumsum(self.supervised, dtype=np.int64)))
        return ends[self.offsets[1:]] - ends[self.offsets[:-1]]

    def select(self, indices: npt.NDArray[np.int64]) -> "Examples":
        """The examples at `indices`, in that order, copied."""
        lengths = self.lengths[indices]
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        # Index of each selected token in the old arrays: its index in the new ones, shifted.
        taken = np.arange(offsets[-1]) + np.repeat(self.offsets[indices] - offsets[:-1], lengths)
        return Examples(self.tokens[taken], self.supervised[taken], offsets)


def concatenate(parts: Sequence[Examples]) -> Examples:
    """All examples of `parts`, in order; an empty set if there are no parts."""
    lengths = [part.lengths for part in parts]
    return Examples(
        np.concatenate([np.empty(0, np.int32), *(part.tokens for part in parts)]),
        np.concatenate([np.empty(0, np.bool_), *(part.supervised for part in parts)]),
        np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64),
    )
