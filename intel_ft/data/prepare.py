"""Reads and tokenizes a data source, and reports every decision made on the way."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intel_ft.config_sections import DataConfig
from intel_ft.config_sources import Auto
from intel_ft.conversations.from_rows import ReadData, read_conversations
from intel_ft.conversations.preferences import Kind, kind_in, read_answers
from intel_ft.conversations.ready_made import tokenized
from intel_ft.data.decode_check import decode_notes
from intel_ft.data.fit import fit, refuse_thoughts
from intel_ft.data.split_long import split_long
from intel_ft.data.weights import example_weights
from intel_ft.errors import UserError
from intel_ft.gc_pause import gc_paused
from intel_ft.plurals import count_of
from intel_ft.sources.bad_rows import NothingUsable
from intel_ft.sources.rows import Rows, load_rows
from intel_ft.templates.answers import Judged, Pairs, judged, pairs_of
from intel_ft.templates.chat_template import ChatTemplate
from intel_ft.templates.encode import SpanEncoder
from intel_ft.templates.examples import Examples, firsts_of
from intel_ft.templates.formats import READY_MADE, Conversation, Format, describe_unused
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template import Template, choose_template, renderer, with_system_prompt
from intel_ft.templates.template_check import template_notes
from intel_ft.templates.truncate import truncate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class DataReport:
    """Counts and decisions of reading one source. Lengths and totals are in tokens.

    examples: rows used, of which `truncated` were shortened; dropped: rows left out (longer than
    max_length, or with a prompt that leaves no room for an answer); split: documents that became
    several examples; bad: rows left out because they cannot be used (data.on_bad: drop); longest:
    the longest example; unused: columns and keys that have no effect; untrained: answers that are
    in the context only, because the data says so, and context_only: because of the template;
    separated: conversations of which the template needs several examples; shortened: conversations
    that end before turns that no trained answer follows. notes: which files and split were chosen
    and which were not, and settings without effect; other_splits: splits that were not read.
    """

    source: str
    format: Format
    format_reason: str
    template: Template
    template_reason: str
    loss_on: str
    loss_reason: str
    rows: int
    examples: int
    tokens: int
    supervised_tokens: int
    longest: int
    truncated: int
    dropped: int
    split: int
    bad: int
    bad_examples: str
    unused: tuple[str, ...]
    untrained: int
    context_only: int
    separated: int
    shortened: int
    notes: tuple[str, ...]
    other_splits: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report as text, one line per fact."""
        share = 100 * self.supervised_tokens / self.tokens
        return [
            f"data {self.source}: {count_of(self.rows, 'row')},"
            f" {count_of(self.examples, 'example')},"
            f" {self.tokens:,} tokens ({share:.0f} % supervised), longest {self.longest:,}",
            f"format {self.format}: {self.format_reason}",
            f"template {self.template}: {self.template_reason}",
            f"loss on {self.loss_on}: {self.loss_reason}",
            *self.left_out(),
        ]

    def left_out(self) -> list[str]:
        """The lines about files, columns, rows and tokens that are not used."""
        lines = list(self.notes)
        if self.unused:
            lines.append(describe_unused(self.unused, self.format))
        if self.untrained:
            lines.append(
                f"context only, as marked in the data: {count_of(self.untrained, 'answer')}"
            )
        if self.separated:
            lines.append(
                f"{count_of(self.separated, 'conversation')} as several examples each: the"
                " chat_template changes earlier answers when later turns follow, for example by"
                " removing their reasoning (data.earlier_answers: separate)"
            )
        if self.context_only:
            lines.append(
                f"context only: {count_of(self.context_only, 'answer')}, because the chat_template"
                " changes earlier answers when later turns follow (data.earlier_answers: context;"
                " separate trains on each one in a separate example)"
            )
        if self.shortened:
            lines.append(
                f"{count_of(self.shortened, 'conversation')} shortened: turns after the last"
                " trained answer are left out"
            )
        if self.bad:
            lines.append(
                f"dropped {self.bad:,} of {self.rows:,} rows, which cannot be used:"
                f" {self.bad_examples}"
            )
        if self.truncated:
            lines.append(f"truncated {count_of(self.truncated, 'example')} to max_length")
        if self.dropped:
            lines.append(f"dropped {count_of(self.dropped, 'example')} longer than max_length")
        if self.split:
            lines.append(
                f"split {count_of(self.split, 'document')} longer than max_length, which gives"
                f" {count_of(self.examples, 'example')}; no token is lost"
            )
        return lines


@dataclass(frozen=True)
class Prepared:
    """Tokenized examples and their conversations, in the same order.

    The conversation of a pair of answers is the chosen one's.
    """

    examples: Examples
    conversations: list[Conversation]
    template: Template
    report: DataReport

    def select(self, indices: npt.NDArray[np.int64]) -> "Prepared":
        """The examples at `indices`, with a report that counts them.

        The report's `rows`, `truncated` and `dropped` remain those of the whole source.
        """
        examples = self.examples.select(indices)
        report = replace(
            self.report,
            examples=len(examples),
            tokens=len(examples.tokens),
            supervised_tokens=int(examples.supervised.sum()),
            longest=examples.longest,
        )
        selected = [self.conversations[index] for index in indices]
        return Prepared(examples, selected, self.template, report)

    def good_answers(self) -> "Prepared":
        """The chosen or good answers as plain examples; itself where answers are not compared."""
        if isinstance(self.examples, Pairs):
            indices = 2 * np.arange(len(self.examples), dtype=np.int64)
            examples, kept = self.examples.answers.select(indices), np.arange(len(indices))
        elif isinstance(self.examples, Judged):
            judged_set, kept = self.examples, np.flatnonzero(self.examples.good)
            plain = Examples(judged_set.tokens, judged_set.supervised, judged_set.offsets)
            examples = plain.select(kept)
        else:
            return self
        conversations = [self.conversations[index] for index in kept]
        return replace(self, examples=examples, conversations=conversations)


def prepare(
    data: DataConfig,
    source: str,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_length: int | None = None,
    answers: Kind | Auto | None = None,
) -> Prepared:
    """Read and tokenize `source` (for example data.train or data.eval) as `data` specifies.

    max_length: tokens per example, including BOS and EOS; defaults to data.max_length. Longer
    examples are handled as data.on_long specifies: `error`, `drop`, `truncate`, which cuts the end
    but keeps EOS, and drops an example that would keep no token of an answer, or, for plain text,
    `split` (data.split_long). answers: what a preference method compares (method.compares), or auto
    for what the columns tell: the examples are then Pairs or Judged, and one is too long if one of
    its answers is.

    Raises UserError (one line, with file, row and column where applicable) for anything wrong with
    the data, EnvironmentProblem if the Hub cannot be reached or a package is missing.
    """
    with gc_paused():
        longest = data.max_length if max_length is None else max_length
        return prepare_rows(load_rows(source, data.split), data, tokenizer, longest, answers)


def prepare_rows(
    rows: Rows,
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerFast",
    longest: int,
    answers: Kind | Auto | None = None,
) -> Prepared:
    """Tokenize rows that were read, as `prepare` does.

    Raises NothingUsable, a UserError, where `data` drops all of them.
    """
    source = rows.source
    answers = kind_in(rows, data) if answers == "auto" else answers
    read, good = read_rows(rows, data, answers)
    data_format = read.format
    template, template_reason = choose_template(
        data.template, data_format, bool(tokenizer.chat_template)
    )
    chat = None
    if template == "tokenizer":
        chat = ChatTemplate(tokenizer, special_tokens_of(tokenizer))
        refuse_thoughts(rows, read, str(tokenizer.chat_template))
    fitted = fit(read, data, template, chat)
    kept = fitted.conversations
    good = [good[place] for place in fitted.places] if good else []
    examples, notes = _encoded(kept, data, template, tokenizer)
    weights = example_weights(rows, data.weight_column, fitted.rows)
    examples = replace(examples, begins=firsts_of(np.array(fitted.rows, np.int64)), weights=weights)
    truncated = dropped = 0
    long = np.flatnonzero(examples.lengths > longest)
    if data.on_long == "split" and data_format != "text":
        raise UserError(
            f"{rows.source}: data.on_long=split is for plain text, and this data is"
            f" {data_format}: set data.on_long to truncate or drop"
        )
    if len(long) and data.on_long == "error":
        raise _too_long(rows.where(fitted.rows[long[0]]), examples, long, longest, answers)
    if len(long) and data.on_long != "split":
        examples, usable, truncated = _shortened(data, examples, long, longest, tokenizer, answers)
        dropped = len(kept) - len(usable)
        if not len(usable):
            raise NothingUsable(
                f"{source}: all {len(kept)} examples are longer than data.max_length ({longest}):"
                " increase data.max_length",
                fitted.bad,
                len(kept),
            )
        kept = [kept[index] for index in usable]
        good = [good[index] for index in usable] if good else []
        examples = examples.select(usable)
    loss_on, loss_reason = _loss_on(data, data_format)
    supervised = examples.supervised.copy()
    if loss_on == "all":
        supervised[:] = True
    supervised[examples.offsets[:-1]] = False  # no token precedes it that would predict it
    examples = replace(examples, supervised=supervised)
    if len(long) and data.on_long == "split":
        documents = kept
        examples, origin = split_long(examples, longest, data.split_overlap)
        kept = [documents[index] for index in origin]
    if answers == "pairs":
        kept, dropped = kept[::2], dropped // 2
    examples = _compared(examples, answers, good, longest)
    report = DataReport(
        source=source,
        format=data_format,
        format_reason=read.format_reason,
        template=template,
        template_reason=template_reason,
        loss_on=loss_on,
        loss_reason=loss_reason,
        rows=len(rows),
        examples=len(examples),
        tokens=len(examples.tokens),
        supervised_tokens=int(examples.supervised.sum()),
        longest=examples.longest,
        truncated=truncated,
        dropped=dropped,
        split=len(long) if data.on_long == "split" else 0,
        bad=len(fitted.bad),
        bad_examples=fitted.bad.examples(),
        unused=tuple(name for name in read.unused if name != data.weight_column),
        untrained=read.untrained,
        context_only=fitted.context_only,
        separated=fitted.separated,
        shortened=read.shortened,
        notes=(*rows.notes, *_without_effect(data, data_format), *notes),
        other_splits=rows.other_splits,
    )
    return Prepared(examples, kept, template, report)


def _encoded(
    conversations: list[Conversation],
    data: DataConfig,
    template: Template,
    tokenizer: "PreTrainedTokenizerFast",
) -> tuple[Examples, list[str]]:
    """The conversations as tokens, and what is to be said about them."""
    if conversations[0].tokens is not None:
        return tokenized(conversations), []
    special = special_tokens_of(tokenizer)
    render = renderer(template, tokenizer, special, data.system_prompt)
    examples = SpanEncoder(tokenizer, special).encode(map(render, conversations))
    notes = decode_notes(tokenizer, conversations, examples)
    if template == "tokenizer":
        talks = (with_system_prompt(one, data.system_prompt) for one in conversations)
        notes += template_notes(tokenizer, special, talks)
    return examples, notes


def read_rows(rows: Rows, data: DataConfig, answers: Kind | None) -> tuple[ReadData, list[bool]]:
    """The conversations, and of answers that are compared whether they are good."""
    if answers is None:
        return read_conversations(rows, data), []
    return read_answers(rows, data, answers)


def _compared(examples: Examples, answers: Kind | None, good: list[bool], longest: int) -> Examples:
    """The examples as what is compared."""
    if answers is None:
        return examples
    return pairs_of(examples) if answers == "pairs" else judged(examples, np.array(good), longest)


def _shortened(
    data: DataConfig,
    examples: Examples,
    long: npt.NDArray[np.int64],
    longest: int,
    tokenizer: "PreTrainedTokenizerFast",
    answers: Kind | None,
) -> tuple[Examples, npt.NDArray[np.int64], int]:
    """The examples, which of them can be used, and how many of these were truncated."""
    unusable = long
    if data.on_long == "truncate":
        examples, unusable = truncate(examples, longest, int(tokenizer.eos_token_id))
    truncated = len(long) - len(unusable)
    if answers == "pairs":  # without its partner, an answer is of no use
        unusable = np.unique(unusable // 2 * 2 + np.array([[0], [1]]))
    return examples, np.setdiff1d(np.arange(len(examples)), unusable), truncated


def _loss_on(data: DataConfig, data_format: Format) -> tuple[str, str]:
    """What is trained on, and why."""
    if data_format == "text":
        return "all", "ready-made text does not mark which part is the completion"
    if data_format in ("segments", "tokens") and data.loss_on != "all":
        return "labels", "the data marks what is trained on"
    if data.loss_on == "completion" and data.roles_to_train != ["assistant"]:
        return "turns", f"of the roles {', '.join(data.roles_to_train)} (data.roles_to_train)"
    return data.loss_on, "from data.loss_on"


def _without_effect(data: DataConfig, data_format: Format) -> list[str]:
    ready = data_format in READY_MADE
    if ready and data.system_prompt:
        return ["data.system_prompt has no effect: ready-made text holds its own"]
    if ready and data.roles_to_train != ["assistant"]:
        return ["data.roles_to_train has no effect: the data has no roles"]
    return []


def _too_long(
    where: str,
    examples: Examples,
    long: npt.NDArray[np.int64],
    max_length: int,
    answers: Kind | None,
) -> UserError:
    lengths = examples.lengths
    # A shortened answer is not the one that was judged.
    what, others = ("examples", "truncate or drop") if answers is None else ("answers", "drop")
    return UserError(
        f"{where} has {lengths[long[0]]} tokens, more than data.max_length"
        f" ({max_length}); {len(long)} of {len(lengths)} {what} are too long, and the longest has"
        f" {lengths.max()} tokens: increase data.max_length, or set data.on_long to {others}"
    )
