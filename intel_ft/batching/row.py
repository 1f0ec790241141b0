"""A packed row: several examples end to end, as the arrays that a model takes."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from intel_ft.batching.forest import Segment, forest_of, sort_sequences
from intel_ft.templates.answers import segments_in
from intel_ft.templates.examples import ExampleSet

IGNORED = -100
"""A target that adds nothing to the loss (torch's default `ignore_index`)."""

IntArray = npt.NDArray[np.int64]
Example = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Shared:
    """How examples read a row in which beginnings that they have in common are computed once.

    parents: int64 [segments], the segment that each one follows, -1 for none. reads: the
    predictions that count for each example, indices into the row's `targets`, end to end; example
    e's are reads[read_bounds[e]:read_bounds[e + 1]].
    """

    parents: IntArray
    reads: IntArray
    read_bounds: IntArray


@dataclass(frozen=True)
class Row:
    """Several examples end to end; every array int64.

    tokens, positions: [tokens]; positions start at 0 in each segment without a parent.
    bounds: [segments + 1], segment i is tokens[bounds[i]:bounds[i + 1]].
    predict, targets: [supervised]; the logits at tokens[predict[k]] should give targets[k].
    shared: None where each example is a segment of its own.
    example_weights: that of each example in the loss, float32 [examples]; None: 1 each.
    """

    tokens: IntArray
    positions: IntArray
    bounds: IntArray
    predict: IntArray
    targets: IntArray
    shared: Shared | None = None
    example_weights: npt.NDArray[np.float32] | None = None

    @property
    def segment_lengths(self) -> IntArray:
        """Tokens of each segment."""
        return np.diff(self.bounds)

    @property
    def squares(self) -> int:
        """Twice the pairs of tokens that attention computes.

        For each segment its end squared less its start squared, both as positions.
        """
        starts = self.positions[self.bounds[:-1]]
        return int(((starts + self.segment_lengths) ** 2 - starts**2).sum())

    @property
    def weights(self) -> npt.NDArray[np.float32] | None:
        """What each prediction counts in the loss, [supervised]; None: 1 each.

        That is the sum of the weights of the examples that read it.
        """
        if self.example_weights is None and self.shared is None:
            return None
        _, examples, reads = self.read_by()
        of_reads = None
        if self.example_weights is not None:  # behind them, that of padding
            of_reads = np.append(self.example_weights, np.float32(0))[examples]
        return np.bincount(reads, of_reads, len(self.targets)).astype(np.float32)

    def read_by(self) -> tuple[int, IntArray, IntArray]:
        """How many examples (each of a pair's answers is one), and who reads which prediction.

        The arrays name an example and a prediction each, int64 [predictions that are read].
        """
        if self.shared is None:
            examples = np.searchsorted(self.bounds, self.predict, side="right") - 1
            return len(self.bounds) - 1, examples, np.arange(len(self.predict))
        counts = np.diff(self.shared.read_bounds)
        return len(counts), np.repeat(np.arange(len(counts)), counts), self.shared.reads


def build_row(examples: ExampleSet, indices: IntArray, *, share: bool = False) -> Row:
    """Concatenate the examples with these indices, in this order.

    Each is a segment; a pair of answers is two. share: compute common beginnings once.
    """
    examples, indices = segments_in(examples, indices)
    parts = [examples[int(index)] for index in indices]
    if share:
        order, common = sort_sequences([tokens for tokens, _ in parts])
        segments = forest_of([len(parts[index][0]) for index in order], common)
        if any(segment.last - segment.first > 1 for segment in segments):
            return _shared_row(parts, order, segments)
    tokens = np.concatenate([tokens for tokens, _ in parts]).astype(np.int64)
    supervised = np.flatnonzero(np.concatenate([mask for _, mask in parts]))
    lengths = np.array([len(tokens) for tokens, _ in parts], dtype=np.int64)
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    positions = np.arange(len(tokens), dtype=np.int64) - np.repeat(bounds[:-1], lengths)
    return Row(tokens, positions, bounds, supervised - 1, tokens[supervised])


def _shared_row(parts: list[Example], order: list[int], segments: list[Segment]) -> Row:
    """The row of these segments; `order` is that of the sorted examples `parts`."""
    bounds = np.cumsum([0, *(segment.end - segment.start for segment in segments)], dtype=np.int64)
    tokens = np.concatenate([parts[order[s.first]][0][s.start : s.end] for s in segments])
    paths: list[list[IntArray]] = [[] for _ in parts]  # of each example, its tokens' places
    for segment, start, end in zip(segments, bounds[:-1], bounds[1:], strict=True):
        for place in range(segment.first, segment.last):
            paths[order[place]].append(np.arange(start, end))
    before = np.full(len(tokens), -1, dtype=np.int64)  # where a supervised token is predicted
    of_examples = []
    for (_, mask), path in zip(parts, paths, strict=True):
        places, supervised = np.concatenate(path), np.flatnonzero(mask)
        before[places[supervised]] = places[supervised - 1]
        of_examples.append(places[supervised])
    predicted = np.flatnonzero(before >= 0)
    lengths = [len(places) for places in of_examples]
    return Row(
        tokens=tokens.astype(np.int64),
        positions=np.concatenate([np.arange(s.start, s.end) for s in segments]),
        bounds=bounds,
        predict=before[predicted],
        targets=tokens[predicted].astype(np.int64),
        shared=Shared(
            np.array([segment.parent for segment in segments], dtype=np.int64),
            np.searchsorted(predicted, np.concatenate(of_examples)),
            np.cumsum([0, *lengths], dtype=np.int64),
        ),
    )


def segments_of(row: Row) -> list[Row]:
    """Each segment of `row`, where each is an example, as a row of its own."""
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
    padding targets are IGNORED, so no result changes. They are read at tokens where nothing is
    predicted, so that `predict` names no more tokens twice than before.
    """
    extra_tokens, extra_targets = tokens - len(row.tokens), targets - len(row.targets)
    unread = np.setdiff1d(np.arange(tokens), row.predict)[:extra_targets]
    shared = row.shared
    if shared is not None and extra_tokens:
        shared = replace(shared, parents=np.append(shared.parents, -1))
    return Row(
        tokens=np.pad(row.tokens, (0, extra_tokens)),
        positions=np.pad(row.positions, (0, extra_tokens)),
        bounds=np.append(row.bounds, tokens) if extra_tokens else row.bounds,
        predict=np.concatenate((row.predict, unread)),
        targets=np.pad(row.targets, (0, extra_targets), constant_values=IGNORED),
        shared=shared,
        example_weights=row.example_weights,
    )
