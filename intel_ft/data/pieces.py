"""Spans of examples cut into pieces, each of which is encoded independently.

A piece is either one special token, given by its text, or a run of spans that are encoded together:
template and content, or a completion, or ready-made text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from intel_ft.data.spans import Span


@dataclass(frozen=True)
class Pieces:
    """The pieces of a number of examples, end to end.

    ids: token ids of each piece, empty for a run until it is encoded; supervised: one flag per
    piece; counts: pieces of each example; runs: the spans to encode; positions: the index in `ids`
    of each run's piece; leads: what stands in front of each run, where it changes the run's ids.
    """

    ids: list[list[int]]
    supervised: list[bool]
    counts: list[int]
    runs: list[list[Span]]
    positions: list[int]
    leads: list[str]


def split_into_pieces(
    examples: list[list[Span]],
    special_ids: Mapping[str, list[int]],
    prefixes_space: bool,
    needs_lead: bool = False,
) -> Pieces:
    """Cut examples into pieces.

    special_ids: ids of the `start` and `end` tokens, by their text. prefixes_space: whether the
    tokenizer puts a space in front of what it encodes; the run before a completion then loses its
    own trailing space. needs_lead: whether ids depend on what stands in front.
    """
    ids: list[list[int]] = []
    supervised: list[bool] = []
    counts: list[int] = []
    runs: list[list[Span]] = []
    positions: list[int] = []
    leads: list[str] = []
    for spans in examples:
        before = len(ids)
        run: list[Span] = []
        lead = ""
        for span in spans:
            if span.kind in ("template", "content"):
                run.append(span)
                continue
            if run:
                positions.append(len(ids))
                runs.append(run)
                leads.append(lead)
                lead = _lead(run[-1]) if needs_lead else ""
                if span.kind == "completion" and prefixes_space:
                    run[-1] = strip_last_space(run[-1])
                ids.append([])
                supervised.append(False)
                run = []
            if span.kind in ("start", "end"):
                ids.append(special_ids[span.text])
            else:
                positions.append(len(ids))
                runs.append([span])
                leads.append(lead)
                ids.append([])
            lead = _lead(span) if needs_lead else ""
            supervised.append(span.trained and span.kind != "start")
        counts.append(len(ids) - before)
        assert not run  # a conversation ends with an assistant turn, and a turn with its end token
    return Pieces(ids, supervised, counts, runs, positions, leads)


def _lead(span: Span) -> str:
    """What the next run's ids may depend on; nothing where a space stands in front of it."""
    if span.kind in ("start", "completion") or span.text[-1:] == " ":
        return ""
    return span.text[-1:] if span.kind == "content" else span.text


def strip_last_space(span: Span) -> Span:
    """The span without its last space, which the tokenizer adds as "▁" to what follows."""
    return Span(span.text.removesuffix(" "), span.kind)


def flatten_ids(
    ids: list[list[int]],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Token ids of all pieces, int32 [tokens], and offsets, int64 [pieces + 1].

    Piece i is tokens[offsets[i]:offsets[i + 1]].
    """
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return np.fromiter(chain.from_iterable(ids), np.int32, int(offsets[-1])), offsets


def count_per_piece(
    flags: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Number of True flags in each piece flags[offsets[i]:offsets[i + 1]], int64 [pieces]."""
    totals = np.concatenate(([0], np.cumsum(flags, dtype=np.int64)))
    counts: npt.NDArray[np.int64] = totals[offsets[1:]] - totals[offsets[:-1]]
    return counts
