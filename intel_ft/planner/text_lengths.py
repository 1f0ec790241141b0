"""Lengths of a run's examples estimated from their text, for a plan without a tokenizer.

Called from planner.lengths. The rows are read and counted as a run reads them; only the number of
tokens in a text is an estimate.
"""

import re
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from intel_ft import assets
from intel_ft.config import Config
from intel_ft.config_sections import DataConfig
from intel_ft.config_sources import Source
from intel_ft.conversations.preferences import Kind
from intel_ft.data.prepare import read_rows
from intel_ft.errors import UserError
from intel_ft.sources.rows import load_rows
from intel_ft.templates.chat_render import TemplateProblem
from intel_ft.templates.formats import Conversation
from intel_ft.templates.spans import Span, SpecialTokens
from intel_ft.templates.template import Renderer, built_in_renderer, choose_template

IntArray = npt.NDArray[np.int64]

_SAMPLE = 1024
"""Rows of a source whose text is read; the others get the lengths of these."""

_PIECE = re.compile(
    r"[A-Za-z]{1,10}"  # a word of English or of code is one token, a long one two
    r"|[^\W\dA-Za-z\u2e80-\ud7ff\u0e00-\u0eff]{1,2}"  # Latin with accents, Cyrillic, Arabic, ...
    r"|[\u2e80-\ud7ff\u0e00-\u0eff]"  # CJK, kana, hangul, Thai and Lao: no spaces between words
    r"|\d{1,3}|\n\s*|[^\w\s]|_"
)
_SPECIAL = SpecialTokens(bos="<s>", eos="</s>", adds_bos=True, added=())
_ONE_TOKEN = ("start", "end")
_SUPERVISED = ("completion", "end", "written", "text")


@dataclass(frozen=True)
class TextLengths:
    """Estimated tokens and supervised tokens of each example, int64 [examples].

    validation_tokens: of the whole validation set. characters: of the text per token.
    """

    lengths: IntArray
    supervised: IntArray
    validation_tokens: int
    characters: float


def estimated_tokens(text: str) -> int:
    """Tokens of a text, estimated from its words, punctuation marks and line breaks.

    English, code and JSON: within 11 % of the tokenizers of Mistral 7B, Claude 2 and DeepSeek. For
    other languages these differ among themselves by up to a factor of 2.5 (docs/log.md).
    """
    return sum(1 for _ in _PIECE.finditer(text))


def text_lengths(config: Config) -> TextLengths:
    """Estimate the lengths of the config's training examples and of its validation set.

    The number of examples is exact where each row gives one. Raises UserError or EnvironmentProblem
    if the data cannot be read, UserError if it is streamed: a stream's examples are not counted.
    """
    data, kind = config.data, config.method.compares
    if data.streaming:
        raise UserError("the examples of a stream are not counted")
    parts = [_source(data.of(source), kind) for source in data.sources]
    whole = reduce(_joined, parts)
    if data.eval is not None:
        own = data.model_copy(update={"weight_column": None})
        own = own.of(Source(path=data.eval, split=data.eval_split or data.split))
        validation = int(_source(own, kind).lengths.sum())
        return TextLengths(whole.lengths, whole.supervised, validation, whole.characters)
    if not data.eval_fraction:
        return whole
    held_out = min(max(round(len(whole.lengths) * data.eval_fraction), 1), len(whole.lengths) - 1)
    tokens = round(held_out * float(whole.lengths.mean()))
    kept = len(whole.lengths) - held_out
    return TextLengths(whole.lengths[:kept], whole.supervised[:kept], tokens, whole.characters)


def _joined(one: TextLengths, other: TextLengths) -> TextLengths:
    lengths = np.concatenate([one.lengths, other.lengths])
    tokens = np.array([one.lengths.sum(), other.lengths.sum()], np.float64)
    characters = float(tokens @ [one.characters, other.characters] / tokens.sum())
    supervised = np.concatenate([one.supervised, other.supervised])
    return TextLengths(lengths, supervised, 0, characters)


def _source(data: DataConfig, kind: Kind | None) -> TextLengths:
    """The examples of the only source of `data`."""
    (source,) = data.sources
    rows = load_rows(assets.resolve(source.path), data.split)
    total = min(len(rows), source.max_examples or len(rows))
    numbers = np.linspace(0, total - 1, min(_SAMPLE, total)).astype(np.int64)
    read, _ = read_rows(rows.sample(numbers), data, kind)
    chosen = "chatml" if data.template == "tokenizer" else data.template
    template, _ = choose_template(chosen, read.format, False)
    render = built_in_renderer(template, _SPECIAL, data.system_prompt)
    found = [_tokens(conversation, render, data) for conversation in read.conversations]
    lengths, supervised, characters = np.array(found, np.int64).T
    per_token = float(characters.sum() / lengths.sum())
    lengths, supervised = _fitted(lengths, supervised, data, kind)
    if kind == "pairs":
        lengths, supervised = (one[::2] + one[1::2] for one in (lengths, supervised))
    places = np.arange(max(1, round(total * len(lengths) / len(numbers)))) % len(lengths)
    return TextLengths(lengths[places], supervised[places], 0, per_token)


def _tokens(conversation: Conversation, render: Renderer, data: DataConfig) -> tuple[int, int, int]:
    """Tokens, supervised tokens and characters of one example."""
    if conversation.tokens is not None:
        ids, trained = conversation.tokens
        return len(ids), sum(trained[1:]), len(ids)
    try:
        spans = render(conversation)
    except TemplateProblem:  # tools: only the tokenizer's own template has a place for them
        spans = [Span(conversation.tools, "template")]
        for message in conversation.messages:
            text = message.full_content + message.calls
            spans.append(Span(f"{message.role}\n", "template"))
            spans.append(Span(text, "completion" if message.in_loss else "content"))
    tokens = [1 if one.kind in _ONE_TOKEN else estimated_tokens(one.text) for one in spans]
    supervised = sum(
        count
        for one, count in zip(spans, tokens, strict=True)
        if data.loss_on == "all" or (one.trained and one.kind in _SUPERVISED)
    )
    return max(2, sum(tokens)), max(1, supervised), sum(len(one.text) for one in spans)


def _fitted(
    lengths: IntArray, supervised: IntArray, data: DataConfig, kind: Kind | None
) -> tuple[IntArray, IntArray]:
    """Examples as data.on_long leaves them: none is longer than data.max_length.

    With `error`, and answers that are compared, they are shortened: an estimate cannot tell that
    one is too long.
    """
    most = data.max_length
    if data.on_long == "split":
        parts = -(-lengths // most)
        lengths, supervised = (np.repeat(-(-one // parts), parts) for one in (lengths, supervised))
    elif data.on_long == "drop" and kind is None and (lengths <= most).any():
        lengths, supervised = lengths[lengths <= most], supervised[lengths <= most]
    shortened = np.minimum(lengths, most)
    return shortened, np.clip(supervised - (lengths - shortened), 1, shortened)
