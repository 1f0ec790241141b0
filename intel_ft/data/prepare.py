"""From a source to examples ready for batching, with a report of every decision; called from
training, evaluation and cli.
"""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intel_ft.config import DataConfig
from intel_ft.data.encode import SpanEncoder
from intel_ft.data.examples import Examples
from intel_ft.data.formats import Conversation, Format, conversations, detect
from intel_ft.data.gc_pause import collector_paused
from intel_ft.data.sources import Rows, load_rows
from intel_ft.data.spans import marks_of
from intel_ft.data.templates import Template, choose, renderer
from intel_ft.data.truncate import cut
from intel_ft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class DataReport:
    """What became of the rows of one source. Lengths and totals are in tokens.

    examples: rows kept, of which `truncated` were shortened; dropped: rows left out (longer than
    max_length, or with a prompt that leaves no room for an answer). longest: among those kept.
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

    def lines(self) -> list[str]:
        """The report for a reader, a line a fact."""
        share = 100 * self.supervised_tokens / self.tokens
        lines = [
            f"data {self.source}: {self.rows:,} rows, {self.examples:,} examples,"
            f" {self.tokens:,} tokens ({share:.0f} % supervised), longest {self.longest:,}",
            f"format {self.format}: {self.format_reason}",
            f"template {self.template}: {self.template_reason}",
            f"loss on {self.loss_on}: {self.loss_reason}",
        ]
        if self.truncated:
            lines.append(f"truncated {self.truncated:,} examples to max_length")
        if self.dropped:
            lines.append(f"dropped {self.dropped:,} examples longer than max_length")
        return lines


@dataclass(frozen=True)
class Prepared:
    """Tokenized examples, and the conversation that each was made from, in the same order."""

    examples: Examples
    conversations: list[Conversation]
    template: Template
    report: DataReport

    def select(self, indices: npt.NDArray[np.int64]) -> "Prepared":
        """The examples at `indices`, and a report that counts them.

        Its `rows`, `truncated` and `dropped` stay those of the whole source.
        """
        examples = self.examples.select(indices)
        report = replace(
            self.report,
            examples=len(examples),
            tokens=len(examples.tokens),
            supervised_tokens=int(examples.supervised.sum()),
            longest=int(examples.lengths.max()),
        )
        kept = [self.conversations[index] for index in indices]
        return Prepared(examples, kept, self.template, report)

    def statistics(self) -> dict[str, Any]:
        """The report's facts, and how many examples have how many tokens: `lengths` counts those
        from one of `edges` to the next.
        """
        counts, edges = np.histogram(self.examples.lengths, bins=24)
        lengths = {"edges": edges.tolist(), "counts": counts.tolist()}
        return {**asdict(self.report), "lengths": lengths}


def prepare(
    data: DataConfig,
    source: str,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    max_length: int | None = None,
) -> Prepared:
    """Read `source` (data.train or data.eval, say) as `data` asks, and tokenize it.

    max_length: in tokens an example, BOS and EOS included; data.max_length unless given. What is
    longer is handled as data.on_long says: `error`, `drop`, or `truncate`, which cuts the end but
    for EOS, and drops an example of which no token of an answer would be left.

    Raises UserError (one line with file, row and column where there are such) for anything wrong
    with the data, EnvironmentProblem if the Hub cannot be reached.
    """
    with collector_paused():
        longest = data.max_length if max_length is None else max_length
        return _prepare(data, source, tokenizer, longest)


def _prepare(
    data: DataConfig, source: str, tokenizer: "PreTrainedTokenizerFast", longest: int
) -> Prepared:
    rows = load_rows(source, data.split)
    format, format_reason = detect(rows.columns, data.format, origin=source, nested=rows.nested)
    template, template_reason = choose(data.template, format, bool(tokenizer.chat_template))
    kept = conversations(rows, format)
    marks = marks_of(tokenizer)
    render = renderer(template, tokenizer, marks, data.system_prompt)
    examples = SpanEncoder(tokenizer, marks).encode(map(render, kept))
    truncated = dropped = 0
    long = np.flatnonzero(examples.lengths > longest)
    if len(long) and data.on_long == "error":
        raise _too_long(rows, examples, long, longest)
    if len(long):
        if data.on_long == "truncate":
            examples, lost = cut(examples, longest, int(tokenizer.eos_token_id))
            truncated = len(long) - len(lost)
        else:
            lost = long
        dropped = len(lost)
        stay = np.setdiff1d(np.arange(len(kept)), lost)
        if not len(stay):
            raise UserError(
                f"{source}: all {len(kept)} examples are longer than data.max_length ({longest}):"
                " raise it"
            )
        kept = [kept[index] for index in stay]
        examples = examples.select(stay)
    if format == "text":
        loss_on, loss_reason = "all", "ready-made text does not say which part is the completion"
    else:
        loss_on, loss_reason = data.loss_on, "set in data.loss_on"
    supervised = examples.supervised.copy()
    if loss_on == "all":
        supervised[:] = True
    supervised[examples.offsets[:-1]] = False  # nothing stands in front of it to predict it from
    examples = Examples(examples.tokens, supervised, examples.offsets)
    report = DataReport(
        source=source,
        format=format,
        format_reason=format_reason,
        template=template,
        template_reason=template_reason,
        loss_on=loss_on,
        loss_reason=loss_reason,
        rows=len(rows),
        examples=len(examples),
        tokens=len(examples.tokens),
        supervised_tokens=int(examples.supervised.sum()),
        longest=int(examples.lengths.max()),
        truncated=truncated,
        dropped=dropped,
    )
    return Prepared(examples, kept, template, report)


def split_fraction(prepared: Prepared, fraction: float, seed: int) -> tuple[Prepared, Prepared]:
    """Hold out a share of the examples: (train, eval), the same for the same seed and data.

    fraction: of the examples, rounded, but at least one stays on each side. Both keep the order
    of the source. Raises UserError if there are fewer than two examples.
    """
    total = len(prepared.examples)
    if total < 2:
        raise UserError(
            f"{prepared.report.source}: one example cannot be split for data.eval_fraction: give"
            " data.eval, or more examples"
        )
    held_out = min(max(round(total * fraction), 1), total - 1)
    shuffled = np.random.default_rng(seed).permutation(total)
    return (
        prepared.select(np.sort(shuffled[held_out:])),
        prepared.select(np.sort(shuffled[:held_out])),
    )


def _too_long(
    rows: Rows, examples: Examples, long: npt.NDArray[np.int64], max_length: int
) -> UserError:
    lengths = examples.lengths
    return UserError(
        f"{rows.where(int(long[0]))} has {lengths[long[0]]} tokens, more than data.max_length"
        f" ({max_length}), as have {len(long)} of {len(lengths)} examples in all (the longest has"
        f" {lengths.max()}): raise data.max_length, or set data.on_long to truncate or drop"
    )
