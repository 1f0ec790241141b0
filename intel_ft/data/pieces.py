"""Examples' spans cut into stretches that are encoded each on its own; called from data.encode.

A stretch is one token given by its text, or a run of spans to encode together: template and
content, or a completion, or ready-made text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from intel_ft.data.spans import Span


@dataclass(frozen=True)
class Layout:
    """The stretches of some examples, end to end.

    stretches: the ids of each, empty for a run until it is encoded; supervised: for each stretch;
    counts: stretches of each example; runs: the spans to encode, and places: their stretches.
    """

    stretches: list[list[int]]
    supervised: list[bool]
    counts: list[int]
    runs: list[list[Span]]
    places: list[int]


def lay_out(
    examples: list[list[Span]], ids: Mapping[str, list[int]], prefixes_space: bool
) -> Layout:
    """Cut examples into stretches.

    ids: of the `start` and `end` tokens, by their text. prefixes_space: whether the tokenizer puts
    a space in front of what it encodes; what stands before a completion then loses its own.
    """
    stretches: list[list[int]] = []
    supervised: list[bool] = []
    counts: list[int] = []
    runs: list[list[Span]] = []
    places: list[int] = []
    for spans in examples:
        before = len(stretches)
        run: list[Span] = []
        for span in spans:
            if span.kind in ("template", "content"):
                run.append(span)
                continue
            if run:
                if span.kind == "completion" and prefixes_space:
                    run[-1] = without_last_space(run[-1])
                places.append(len(stretches))
                runs.append(run)
                stretches.append([])
                supervised.append(False)
                run = []
            if span.kind in ("start", "end"):
                stretches.append(ids[span.text])
            else:
                places.append(len(stretches))
                runs.append([span])
                stretches.append([])
            supervised.append(span.kind != "start")
        counts.append(len(stretches) - before)
        assert not run  # a conversation ends with an assistant turn, a turn with its end
    return Layout(stretches, supervised, counts, runs, places)


def without_last_space(span: Span) -> Span:
    """The tokenizer writes the space itself, as the "▁" in front of what follows."""
    return Span(span.text.removesuffix(" "), span.kind)


def flat(
    stretches: list[list[int]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """All ids end to end, and where each stretch ends, from 0."""
    ends = np.cumsum([0, *map(len, stretches)], dtype=np.int64)
    return np.fromiter(chain.from_iterable(stretches), np.int32, int(ends[-1])), ends


def sums(flags: npt.NDArray[np.bool_], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many flags are set in each stretch ends[i]:ends[i + 1]."""
    totals = np.concatenate(([0], np.cumsum(flags, dtype=np.int64)))
    found: npt.NDArray[np.int64] = totals[ends[1:]] - totals[ends[:-1]]
    return found
