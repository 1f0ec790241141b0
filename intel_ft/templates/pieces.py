"""Spans of examples cut into pieces, each of which is encoded independently.

A piece is either one special token, given by its text, or a run of spans that are encoded together:
template and content, or an answer (written and completion), or ready-made text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from intel_ft.templates.spans import Span


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
        lead = ""
        start = 0
        while start < len(spans):
            span = spans[start]
            end = _run_end(spans, start)
            if span.kind in ("start", "end"):
                ids.append(special_ids[span.text])
            else:
                run = spans[start:end]
                if prefixes_space and span.kind in _CONTEXT and _is_answer(spans, end):
                    run[-1] = strip_last_space(run[-1])
                positions.append(len(ids))
                runs.append(run)
                leads.append(lead)
                ids.append([])
            lead = _lead(spans[end - 1]) if needs_lead else ""
            supervised.append(span.trained and span.kind not in ("start", *_CONTEXT))
            start = end
        counts.append(len(ids) - before)
    return Pieces(ids, supervised, counts, runs, positions, leads)


_CONTEXT = ("template", "content")
_ANSWER = ("written", "completion")


def _run_end(spans: list[Span], start: int) -> int:
    """Where the run that begins with spans[start] ends."""
    first, end = spans[start], start + 1
    kinds = _CONTEXT if first.kind in _CONTEXT else _ANSWER if first.kind in _ANSWER else ()
    while end < len(spans) and spans[end].kind in kinds:
        if kinds is _ANSWER and spans[end].trained != first.trained:
            break
        end += 1
    return end


def _is_answer(spans: list[Span], index: int) -> bool:
    return index < len(spans) and spans[index].kind in _ANSWER


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
