"""What `intel-ft validate` shows: examples as a person reads them, and how they differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from intel_ft import assets
from intel_ft.config_sections import DataConfig
from intel_ft.conversations.preferences import Kind
from intel_ft.data.fit import fit
from intel_ft.data.prepare import read_rows
from intel_ft.sources.bad_rows import NothingUsable
from intel_ft.sources.rows import Rows, load_rows
from intel_ft.templates.chat_template import ChatTemplate
from intel_ft.templates.encode import decoded
from intel_ft.templates.examples import ExampleSet
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template import choose_template, with_system_prompt
from intel_ft.templates.template_check import Comparison, compare

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ROWS = 10_000  # compared at a time


@dataclass(frozen=True)
class ShownExample:
    """One example: token ids, for each whether it is trained on, and both as parts of its text."""

    tokens: list[int]
    trained: list[bool]
    parts: list[tuple[str, bool]]


def shown_examples(
    examples: ExampleSet, tokenizer: "PreTrainedTokenizerFast", count: int
) -> list[ShownExample]:
    """The first `count` examples."""
    found = []
    for index in range(min(count, len(examples))):
        tokens, trained = examples[index]
        edges = np.flatnonzero(np.diff(trained)) + 1
        bounds = [0, *edges.tolist(), len(tokens)]
        texts = [decoded(tokenizer, tokens[:end]) for end in bounds]
        parts = [
            (after[len(before) :], bool(trained[start]))
            for before, after, start in zip(texts, texts[1:], bounds, strict=False)
        ]
        found.append(ShownExample(tokens.tolist(), trained.tolist(), parts))
    return found


def compare_with_template(
    data: DataConfig, tokenizer: "PreTrainedTokenizerFast", answers: Kind | None = None
) -> Comparison | None:
    """Compare every conversation of the training data with what its chat_template gives.

    Both its ids and its prompt, which a server would send (data.template_check). None for a
    stream, and if no source uses the tokenizer's template. answers: as for data.prepare.prepare,
    whose errors are raised.
    """
    if data.streaming:
        return None
    found = [
        part
        for source in data.sources
        for part in _comparisons(data.of(source), tokenizer, answers)
    ]
    if not found:
        return None
    first = next((part.first for part in found if part.first), "")
    return Comparison(
        sum(part.compared for part in found), sum(part.unlike for part in found), first
    )


def _comparisons(
    data: DataConfig, tokenizer: "PreTrainedTokenizerFast", answers: Kind | None
) -> Iterator[Comparison]:
    """Those of one source, a part of its rows after the other."""
    (source,) = data.sources
    rows = load_rows(assets.resolve(source.path), data.split)
    special = special_tokens_of(tokenizer)
    chat = None
    for start in range(0, len(rows), _ROWS):
        part = rows.part(start, start + _ROWS)
        try:
            read, _ = read_rows(part, data, answers)
            template, _ = choose_template(data.template, read.format, bool(tokenizer.chat_template))
            if template != "tokenizer":
                return
            chat = chat or ChatTemplate(tokenizer, special)
            fitted = fit(read, data, template, chat)
        except NothingUsable:
            continue
        talks = [with_system_prompt(one, data.system_prompt) for one in fitted.conversations]
        place = partial(_place, part, fitted.rows)
        yield compare(tokenizer, special, talks, place)


def _place(rows: Rows, indices: list[int], conversation: int) -> str:
    return rows.where(indices[conversation])
