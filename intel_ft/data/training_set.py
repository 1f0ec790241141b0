"""The training examples of a run from all its sources, and the validation set split off from them.

Called wherever the data of a run is read: by training, the planner and the export.
"""

from typing import TYPE_CHECKING

import numpy as np

from intel_ft import assets
from intel_ft.config_sections import DataConfig
from intel_ft.config_sources import Source
from intel_ft.conversations.preferences import Kind
from intel_ft.data.prepare import Prepared, prepare
from intel_ft.data.stream import Stream
from intel_ft.data.token_cache import cached
from intel_ft.data.tokenized import Tokenized, join, of_prepared
from intel_ft.data.validation_split import split_fraction, split_places

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def tokenize(data: DataConfig, tokenizer: "PreTrainedTokenizerFast") -> Tokenized:
    """The examples of `data`, whose data.train is one source, in memory or in the cache.

    Raises as `prepare` does.
    """
    (source,) = data.sources
    path = assets.resolve(source.path)
    tokenized = cached(data, path, tokenizer, source.max_examples)
    if tokenized is None:
        tokenized = of_prepared(prepare(data, path, tokenizer))
    if source.max_examples is not None and source.max_examples < len(tokenized.examples):
        return tokenized.select(np.arange(source.max_examples, dtype=np.int64))
    return tokenized


def compared(
    data: DataConfig, kind: Kind, tokenizer: "PreTrainedTokenizerFast", seed: int
) -> tuple[Prepared, Prepared | None]:
    """The pairs or judged answers of the one source of `data`, and the validation set.

    That is split off, or data.eval. They are in memory. Raises as `prepare` does.
    """
    (source,) = data.sources
    training = prepare(data.of(source), assets.resolve(source.path), tokenizer, answers=kind)
    if source.max_examples is not None and source.max_examples < len(training.examples):
        training = training.select(np.arange(source.max_examples, dtype=np.int64))
    if data.eval is not None:
        own = data.of(Source(path=data.eval, split=data.eval_split or data.split))
        return training, prepare(own, assets.resolve(data.eval), tokenizer, answers=kind)
    if data.eval_fraction:
        return split_fraction(training, data.eval_fraction, seed)
    return training, None


def streamed(data: DataConfig, tokenizer: "PreTrainedTokenizerFast") -> Tokenized:
    """The first buffer of data.train. Raises as Stream does."""
    (source,) = data.sources
    stream = Stream(data.of(source), assets.resolve(source.path), tokenizer)
    return Tokenized(stream, stream.buffer.template, (stream.buffer.report,))


def training_and_validation(
    data: DataConfig, tokenizer: "PreTrainedTokenizerFast", seed: int
) -> tuple[Tokenized, Tokenized | None]:
    """The training examples of all sources, and the validation set if data.eval_fraction is set.

    Each source gives its share to the validation set, whatever its weight is; a prompt of several
    sources is in one of the two. Raises as `prepare` does, and UserError for a source that cannot
    be split or mixed.
    """
    if data.streaming:
        return streamed(data, tokenizer), None
    training = [tokenize(data.of(source), tokenizer) for source in data.sources]
    validation = []
    if data.eval is None and data.eval_fraction:
        places = split_places(
            [source.examples for source in training],
            data.eval_fraction,
            seed,
            [source.path for source in data.sources],
        )
        split = list(zip(training, places, strict=True))
        validation = [source.select(held_out) for source, (_, held_out) in split if len(held_out)]
        training = [source.select(kept) for source, (kept, _) in split]
    weights = [source.weight for source in data.sources if source.weight is not None]
    return join(training, weights), join(validation) if validation else None
