"""Rows that are written already: Axolotl's `segments` of text, and token ids with labels."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from intel_ft.plurals import count_of
from intel_ft.sources.bad_rows import BadRow
from intel_ft.templates.examples import Examples
from intel_ft.templates.formats import Conversation

_IGNORED = -100  # the label of a token that is not trained on, as in torch's cross-entropy


def read_segments(value: object) -> tuple[tuple[str, bool], ...]:
    """Each segment's text, and whether it is trained on (`label`). Raises BadRow."""
    if not isinstance(value, list) or not value:
        raise BadRow("segments is not a list of {label, text}")
    found = []
    for place, segment in enumerate(value):
        name = f"segments[{place}]"
        if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
            raise BadRow(f"{name} is not a mapping with label and text")
        if not isinstance(segment.get("label"), bool):
            raise BadRow(f"{name}.label is {segment.get('label')!r}; supported are true and false")
        if segment["text"]:
            found.append((segment["text"], segment["label"]))
    if not any(label for _, label in found):
        raise BadRow("no segment is trained on (label: true), so there is nothing to learn")
    return tuple(found)


def read_tokens(row: dict[str, Any]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The ids of a row, and for each whether it is trained on: where its label is not -100.

    Without labels, all are. Ids whose attention_mask is 0 are padding and left out. Raises BadRow
    for columns that do not fit together, and for a label that is not the token's id: labels belong
    to their own position, as Transformers takes them.
    """
    ids = _integers("input_ids", row["input_ids"])
    if wrong := next((one for one in ids if not 0 <= one < 2**31), None):
        raise BadRow(f"input_ids has {wrong}, which is not a token id")
    labels = row.get("labels")
    labels = ids if labels is None else _integers("labels", labels)
    mask = row.get("attention_mask")
    mask = [1] * len(ids) if mask is None else _integers("attention_mask", mask)
    for name, values in (("labels", labels), ("attention_mask", mask)):
        if len(values) != len(ids):
            raise BadRow(f"{name} has {count_of(len(values), 'value')}, input_ids has {len(ids)}")
    kept = [index for index, value in enumerate(mask) if value]
    if kept and len(kept) != kept[-1] - kept[0] + 1:
        raise BadRow("attention_mask is 0 between tokens: only padding at an end is supported")
    for index, (token, label) in enumerate(zip(ids, labels, strict=True)):
        if label != _IGNORED and (label != token or not mask[index]):
            what = f"{label}, but input_ids[{index}] is {token}" if mask[index] else "of padding"
            raise BadRow(f"labels[{index}] is {what}: use -100 for what is not trained on")
    supervised = tuple(labels[index] != _IGNORED for index in kept)
    if not any(supervised[1:]):
        raise BadRow("no token is trained on (labels), so there is nothing to learn")
    return tuple(ids[index] for index in kept), supervised


def tokenized(conversations: Sequence[Conversation]) -> Examples:
    """The examples of conversations that are token ids."""
    pairs = [one.tokens for one in conversations if one.tokens is not None]
    offsets = np.cumsum([0, *(len(ids) for ids, _ in pairs)], dtype=np.int64)
    total = int(offsets[-1])
    tokens = np.fromiter(chain.from_iterable(ids for ids, _ in pairs), np.int32, total)
    flags = np.fromiter(chain.from_iterable(flags for _, flags in pairs), np.bool_, total)
    return Examples(tokens, flags, offsets)


def _integers(name: str, value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise BadRow(f"{name} is not a list of integers")
    return value
