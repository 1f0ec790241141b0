"""A packed row: several examples end to end, as the arrays that a model takes."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from intel_ft.templates.answers import segments_in
from intel_ft.templates.examples import ExampleSet

IGNORED = -100
"""A target that adds nothing to the loss (torch's default `ignore_index`)."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """Several examples end to end; every array int64.

    tokens, positions: [tokens]; positions start at 0 in each segment.
    bounds: [segments + 1], segment i is tokens[bounds[i]:bounds[i + 1]].
    predict, targets: [supervised]; the logits at tokens[predict[k]] should give targets[k].
    """

    tokens: IntArray
    positions: IntArray
    bounds: IntArray
    predict: IntArray
    targets: IntArray

    @property
    def segment_lengths(self) -> IntArray:
        """Tokens of each segment."""
        return np.diff(self.bounds)


def build_row(examples: ExampleSet, indices: IntArray) -> Row:
    """Concatenate the examples with these indices, in this order.

    Each is a segment; a pair of answers is two.
    """
    examples, indices = segments_in(examples, indices)
    parts = [examples[int(index)] for index in indices]
    tokens = np.concatenate([tokens for tokens, _ in parts]).astype(np.int64)
    supervised = np.flatnonzero(np.concatenate([mask for _, mask in parts]))
    lengths = np.array([len(tokens) for tokens, _ in parts], dtype=np.int64)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    positions = np.arange(len(tokens), dtype=np.int64) - np.repeat(bounds[:-1], lengths)
    return Row(tokens, positions, bounds, supervised - 1, tokens[supervised])


def segments_of(row: Row) -> list[Row]:
    """Each segment of `row` as a row of its own."""
    rows = []
    for start, end in pairwise(row.bounds.tolist()):
        read = (row.predict >= start) & (row.predict < end)
        rows.append(
            Row(
                row.tokens[start:end],
                row.positions[start:end],
                np.array([0, end - start], dtype=np.int64),
                row.predict[read] - start,
                row.targets[read],
            )
        )
    return rows


def pad_row(row: Row, tokens: int, targets: int) -> Row:
    """The row padded to `tokens` tokens and `targets` targets, of which it has at most as many.

    The padding tokens form one more segment, at position 0 (which every model has), and the
    padding targets are IGNORED, so no result changes. They belong to tokens that are not
    supervised, so that `predict` names no token twice.
    """
    extra_tokens, extra_targets = tokens - len(row.tokens), targets - len(row.targets)
    unread = np.setdiff1d(np.arange(tokens), row.predict)[:extra_targets]
    return Row(
        tokens=np.pad(row.tokens, (0, extra_tokens)),
        positions=np.pad(row.positions, (0, extra_tokens)),
        bounds=np.append(row.bounds, tokens) if extra_tokens else row.bounds,
        predict=np.concatenate((row.predict, unread)),
        targets=np.pad(row.targets, (0, extra_targets), constant_values=IGNORED),
    )
