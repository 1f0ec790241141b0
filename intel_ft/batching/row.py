"""A packed row as the arrays a model needs; called from training with a plan's example indices."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intel_ft.data.examples import Examples

IGNORED = -100
"""A target that no loss is taken of (torch's default `ignore_index`)."""

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


def build_row(examples: Examples, indices: IntArray) -> Row:
    """Concatenate the examples with these indices, in this order."""
    parts = [examples[int(index)] for index in indices]
    tokens = np.concatenate([tokens for tokens, _ in parts]).astype(np.int64)
    supervised = np.flatnonzero(np.concatenate([mask for _, mask in parts]))
    lengths = np.array([len(tokens) for tokens, _ in parts], dtype=np.int64)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    positions = np.arange(len(tokens), dtype=np.int64) - np.repeat(bounds[:-1], lengths)
    return Row(tokens, positions, bounds, supervised - 1, tokens[supervised])


def filled(row: Row, quantum: int) -> Row:
    """The row with tokens and targets filled up to multiples of `quantum`.

    The filling is a segment of its own, at position 0 (which every model has), and its targets
    are IGNORED, so no result changes. It predicts at tokens that are not supervised, so that
    `predict` names no token twice.
    """
    extra, ignored = -len(row.tokens) % quantum, -len(row.targets) % quantum
    length = len(row.tokens)
    unread = np.setdiff1d(np.arange(length + extra), row.predict)[:ignored]
    return Row(
        tokens=np.pad(row.tokens, (0, extra)),
        positions=np.pad(row.positions, (0, extra)),
        bounds=np.append(row.bounds, length + extra) if extra else row.bounds,
        predict=np.concatenate((row.predict, unread)),
        targets=np.pad(row.targets, (0, ignored), constant_values=IGNORED),
    )
