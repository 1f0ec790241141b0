"""Lengths of a run's examples for a plan: read from all rows or from a sample, or assumed.

A plan computes time and memory from a few of the run's steps, so it tokenizes the rows of these
steps only. All rows are read where there are few, or where their tokens are in the cache.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intel_ft import assets
from intel_ft.batching.plan import IntArray, Plan
from intel_ft.config import Config
from intel_ft.config_sections import DataConfig, TrainConfig
from intel_ft.config_sources import Source
from intel_ft.data.mixture import Part
from intel_ft.data.prepare import prepare_rows
from intel_ft.data.prompts import answers_together
from intel_ft.data.selection import Selection
from intel_ft.data.stream import Stream
from intel_ft.data.token_cache import is_cached
from intel_ft.data.tokenized import Tokenized
from intel_ft.data.training_set import tokenize
from intel_ft.errors import IntelFTError, MissingPackage
from intel_ft.gc_pause import gc_paused
from intel_ft.models.load import load_tokenizer
from intel_ft.planner.text_lengths import text_lengths
from intel_ft.plurals import count_of
from intel_ft.sources.rows import Rows, load_rows
from intel_ft.templates.examples import Examples, ExampleSet
from intel_ft.training.decide import sampled_steps, total_steps
from intel_ft.training.setup import read_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FEW = 1024
"""Fewest rows that a sample has; a sample of more than half of the rows is not taken."""

_BLOCK = 256
"""The first rows, which show whether answers to one prompt follow each other in the data."""


@dataclass(frozen=True)
class AssumedData:
    """Data assumed in place of the config's: examples, and tokens of each; half are supervised."""

    examples: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, eq=False)
class ExampleLengths:
    """Tokens of each training example, and of the whole validation set.

    source: where the numbers come from. named: the highest token id that was read plus one. parts:
    what an epoch takes from each source, where they have weights. examples: the data. `named` and
    `examples` are None if the data was not tokenized. counted: whether the number of examples is
    known; if not, neither is that of steps in an epoch. repeats: whether examples stand for others
    that were not read, so that equal ones are no answers to one prompt.
    """

    lengths: npt.NDArray[np.int64]
    supervised: npt.NDArray[np.int64]
    validation_tokens: int
    source: str
    named: int | None = None
    parts: tuple[Part, ...] = ()
    examples: ExampleSet | None = None
    counted: bool = True
    repeats: bool = False


def example_lengths(
    config: Config, assumed: AssumedData | None, *, whole: bool = False
) -> ExampleLengths:
    """Read and tokenize the config's data, or use the `assumed` data.

    whole: all of it, not only the rows of the steps that a plan samples. Without the model's
    tokenizer, lengths are estimated from the text. If the data cannot be read, examples of half of
    data.max_length are assumed, whose number is not known. `source` has the reason.
    """
    if assumed is not None:
        return _assumed(config, assumed)
    try:
        tokenizer = load_tokenizer(config.model)
    except MissingPackage:
        raise
    except IntelFTError as error:
        return _from_text(config, error)
    try:
        return (None if whole else _sampled(config, tokenizer)) or _all(config, tokenizer)
    except IntelFTError as error:
        return _assumed(config, AssumedData(), f" ({error})")


def _assumed(config: Config, assumed: AssumedData, reason: str = "") -> ExampleLengths:
    count = assumed.examples or config.train.global_batch_size
    tokens = assumed.tokens or max(8, config.data.max_length // 2)
    lengths = np.full(count, tokens, dtype=np.int64)
    number = f"{assumed.examples:,}" if assumed.examples else "an unknown number of"
    source = f"assumed: {number} examples of {count_of(tokens, 'token')}, half supervised{reason}"
    counted = assumed.examples is not None
    return ExampleLengths(lengths, lengths // 2, 0, source, counted=counted)


def _from_text(config: Config, reason: IntelFTError) -> ExampleLengths:
    """The data's examples, their tokens estimated because the model's tokenizer is not there."""
    try:
        found = text_lengths(config)
    except IntelFTError as error:
        return _assumed(config, AssumedData(), f" ({error})")
    source = (
        f"{config.data.train_name}: about {count_of(len(found.lengths), 'example')}, tokens "
        f"estimated at {found.characters:.1f} characters per token, because the model's tokenizer "
        f"cannot be read ({reason})"
    )
    return ExampleLengths(found.lengths, found.supervised, found.validation_tokens, source)


def _all(config: Config, tokenizer: "PreTrainedTokenizerFast") -> ExampleLengths:
    training, validation = read_data(config, tokenizer)
    examples = training.examples
    return ExampleLengths(
        examples.lengths,
        examples.supervised_counts,
        0 if validation is None else validation.report.tokens,
        f"{config.data.train_name}: {count_of(len(examples), 'example')}{_mixed(training)}",
        examples.highest_id + 1,
        training.parts,
        examples,
    )


def _mixed(training: Tokenized) -> str:
    """Where the examples are not all of one source: what an epoch takes from each."""
    if isinstance(training.examples, Stream):
        return ", the first buffer of a stream"
    if len(training.reports) == 1:
        return ""
    shares = (f"{100 * one['share']:.1f} % {one['source']}" for one in training.shares())
    return f" ({', '.join(shares)})"


def _sampled(config: Config, tokenizer: "PreTrainedTokenizerFast") -> ExampleLengths | None:
    """The lengths of the examples in the steps that a plan samples; None to read all rows.

    An example that is in none of these steps gets the length of one that is.
    """
    data = config.data
    if data.streaming or len(data.sources) > 1 or config.method.compares is not None:
        return None
    (source,) = data.sources
    with tempfile.TemporaryDirectory(prefix="intel-ft-") as folder:
        rows = _rows(data.of(source), tokenizer, Path(folder, "train"))
        if rows is None:
            return None
        total = min(len(rows), source.max_examples or len(rows))
        numbers = np.union1d(_in_steps(config.train, total), _spread(total))
        if 2 * len(numbers) > total:
            return None
        if config.train.keep_answers_together:
            block = np.arange(min(_BLOCK, total), dtype=np.int64)
            if _has_several_answers(_tokenized(rows, block, data.of(source), tokenizer)):
                return None
        read = _tokenized(rows, numbers, data.of(source), tokenizer)
        held_out, validation = _validation(config, tokenizer, read, total, Path(folder, "eval"))
    one_each = len(read) == len(numbers)
    count = round(total * len(read) / len(numbers)) - held_out
    places = np.arange(count, dtype=np.int64) % len(read)
    if one_each and not held_out:  # example i is row i, so these are the run's own steps
        places[numbers] = np.arange(len(read))
    else:
        steps = _in_steps(config.train, count)
        places[steps] = np.arange(len(steps)) % len(read)
    examples = Selection((read,), places)
    return ExampleLengths(
        examples.lengths,
        examples.supervised_counts,
        validation,
        f"{data.train_name}: {'' if one_each else 'about '}{count_of(count, 'example')}, of which "
        f"{len(read):,} were read (--measure reads all)",
        read.highest_id + 1,
        examples=examples,
        repeats=True,
    )


def _has_several_answers(block: Examples) -> bool:
    """Whether many prompts have several answers: the steps then follow from all examples."""
    together = answers_together(block)
    if together is None:
        return False
    return 8 * int(np.count_nonzero(together != np.arange(len(block)))) > len(block)


def _validation(
    config: Config,
    tokenizer: "PreTrainedTokenizerFast",
    read: Examples,
    total: int,
    folder: Path,
) -> tuple[int, int]:
    """Examples of `total` that are held out for validation; tokens of the validation set."""
    data = config.data
    if data.eval is not None:
        own = data.model_copy(update={"weight_column": None})
        own = own.of(Source(path=data.eval, split=data.eval_split or data.split))
        rows = _rows(own, tokenizer, folder)
        if rows is None:
            return 0, tokenize(own, tokenizer).report.tokens
        some = _tokenized(rows, _spread(len(rows)), own, tokenizer)
        return 0, round(len(some.tokens) * len(rows) / min(len(rows), _FEW))
    if not data.eval_fraction:
        return 0, 0
    held_out = min(max(round(total * data.eval_fraction), 1), total - 1)
    return held_out, round(held_out * float(read.lengths.mean()))


def _in_steps(train: TrainConfig, count: int) -> IntArray:
    """Which of `count` examples are in the steps that a plan samples, sorted."""
    ones = np.ones(count, np.int64)
    plan = Plan(ones, ones, train.global_batch_size, max_tokens_per_row=1, seed=train.seed)
    steps = sampled_steps(plan, total_steps(train, plan))
    return np.unique(np.concatenate([step.examples for step in steps]))


def _spread(total: int) -> IntArray:
    """The numbers of _FEW of `total` rows, evenly spread; of all if there are no more."""
    return np.linspace(0, total - 1, min(_FEW, total)).astype(np.int64)


def _rows(data: DataConfig, tokenizer: "PreTrainedTokenizerFast", folder: Path) -> Rows | None:
    """The rows of the only source of `data`, stored in `folder`; None if tokens are cached."""
    (source,) = data.sources
    path = assets.resolve(source.path)
    if is_cached(data, path, tokenizer, source.max_examples):
        return None
    return load_rows(path, data.split, folder=folder)


def _tokenized(
    rows: Rows, numbers: IntArray, data: DataConfig, tokenizer: "PreTrainedTokenizerFast"
) -> Examples:
    """The examples of the rows of these numbers."""
    with gc_paused():
        part = rows.sample(numbers)
        return prepare_rows(part, data, tokenizer, data.max_length).examples
