"""Tokenized examples as three flat arrays: what data/ passes to batching/ and training/."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

_ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads the bits of a weight over a hash
_BLOCK = 1 << 24  # tokens that are compared at a time, where all of them may be larger than memory


class ExampleSet(Protocol):
    """Tokenized examples wherever they lie: in memory, on disk, or in several sets.

    An example is its token ids, int32, and the mask of those that are supervised, bool. Its first
    token is never supervised. What a plan needs of all examples is in memory: 24 bytes of each.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]: ...

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example, int64 [examples]."""

    @property
    def supervised_counts(self) -> npt.NDArray[np.int64]:
        """Supervised tokens of each example, int64 [examples]."""

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """A hash of each example's token ids and mask, uint64 [examples]."""

    @property
    def prompts(self) -> npt.NDArray[np.uint64]:
        """A hash of each example's prompt, uint64 [examples]; 0 where it has none.

        The prompt is what comes before the first supervised token. A single token is none: plain
        text begins with one.
        """

    @property
    def firsts(self) -> npt.NDArray[np.bool_]:
        """Whether an example is the first one of its row of the source, bool [examples]."""

    @property
    def weights(self) -> npt.NDArray[np.float32] | None:
        """The weight of each example in the training loss, [examples]; None: 1 each."""

    @property
    def highest_id(self) -> int:
        """The highest token id."""

    def ids_beyond(self, limit: int) -> set[int]:
        """Token ids of `limit` and more."""


@dataclass(frozen=True)
class Examples:
    """Token ids of all examples end to end, with a mask of the supervised ones.

    tokens: int32 [total]; supervised: bool [total], True where the token is a prediction target
    (its loss is read at the position before it, so an example's first token is never supervised);
    offsets: int64 [examples + 1], example i is tokens[offsets[i]:offsets[i + 1]]; begins: `firsts`,
    None where every example is a row of its own; weights: in the training loss, float32 [examples],
    None: 1 each.
    """

    tokens: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    begins: npt.NDArray[np.bool_] | None = None
    weights: npt.NDArray[np.float32] | None = None

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

    @property
    def longest(self) -> int:
        """Tokens of the longest segment that an example has in a row."""
        return int(self.lengths.max())

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """A hash of each example's token ids, mask and weight, uint64 [examples]."""
        tokens, supervised = self.tokens.view(np.uint8).data, self.supervised.data
        ends = self.offsets.tolist()
        found = np.fromiter(
            (
                _hash(tokens[4 * start : 4 * end], supervised[start:end])
                for start, end in pairwise(ends)
            ),
            np.uint64,
            len(self),
        )
        return found if self.weights is None else found ^ _bits(self.weights)

    @property
    def prompts(self) -> npt.NDArray[np.uint64]:
        """See ExampleSet."""
        tokens = self.tokens.view(np.uint8).data
        found = np.zeros(len(self), np.uint64)
        for index, (start, end) in enumerate(pairwise(self.offsets.tolist())):
            length = int(self.supervised[start:end].argmax())
            if length > 1:
                found[index] = _hash(tokens[4 * start : 4 * (start + length)]) or 1
        return found

    @property
    def firsts(self) -> npt.NDArray[np.bool_]:
        """Whether an example is the first one of its row of the source, bool [examples]."""
        return np.ones(len(self), np.bool_) if self.begins is None else self.begins

    @property
    def highest_id(self) -> int:
        """The highest token id."""
        return int(self.tokens.max())

    def ids_beyond(self, limit: int) -> set[int]:
        """Token ids of `limit` and more."""
        found: set[int] = set()
        for start in range(0, len(self.tokens), _BLOCK):
            block = self.tokens[start : start + _BLOCK]
            found.update(np.unique(block[block >= limit]).tolist())
        return found

    def select(self, indices: npt.NDArray[np.int64]) -> "Examples":
        """The examples at `indices`, in that order, copied."""
        lengths = self.lengths[indices]
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        # Index of each selected token in the old arrays: its index in the new ones, shifted.
        taken = np.arange(offsets[-1]) + np.repeat(self.offsets[indices] - offsets[:-1], lengths)
        begins = (
            None
            if self.begins is None
            else firsts_of(np.cumsum(self.begins, dtype=np.int64)[indices])
        )
        weights = None if self.weights is None else self.weights[indices]
        return Examples(self.tokens[taken], self.supervised[taken], offsets, begins, weights)


def firsts_of(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which examples are the first of their row, given each one's row, in order."""
    firsts: npt.NDArray[np.bool_] = np.diff(rows, prepend=-1) != 0
    return firsts


def text_hashes(examples: ExampleSet) -> npt.NDArray[np.uint64]:
    """A hash of each example's token ids and mask, whatever its weight is, uint64 [examples]."""
    return (
        examples.hashes if examples.weights is None else examples.hashes ^ _bits(examples.weights)
    )


def _bits(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """What the weights add to hashes; adding it twice removes it. 0 for a weight of 1."""
    ones = np.ones(1, np.float32).view(np.uint32)
    return (weights.view(np.uint32) ^ ones).astype(np.uint64) * _ODD


def _hash(tokens: memoryview, supervised: memoryview | None = None) -> int:
    digest = hashlib.blake2b(tokens, digest_size=8)
    if supervised is not None:
        digest.update(supervised)
    return int.from_bytes(digest.digest(), "little")


def concatenate(parts: Sequence[Examples]) -> Examples:
    """All examples of `parts`, in order; an empty set if there are no parts."""
    lengths = [part.lengths for part in parts]
    return Examples(
        np.concatenate([np.empty(0, np.int32), *(part.tokens for part in parts)]),
        np.concatenate([np.empty(0, np.bool_), *(part.supervised for part in parts)]),
        np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64),
    )
