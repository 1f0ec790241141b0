"""Calibration and validation examples for an export: from the run, or from data the user names."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from intel_ft import assets
from intel_ft.artifacts.resolve import Artifact
from intel_ft.config import Config, check_data
from intel_ft.config_sections import DataConfig
from intel_ft.config_sources import Source
from intel_ft.data.prepare import Prepared, prepare
from intel_ft.data.tokenized import Tokenized, join, of_prepared
from intel_ft.data.training_set import compared, training_and_validation
from intel_ft.data.validation_split import split_places
from intel_ft.errors import UserError
from intel_ft.export.quantize import Calibration
from intel_ft.quantization import Settings
from intel_ft.templates.answers import Pairs
from intel_ft.templates.examples import ExampleSet, concatenate
from intel_ft.training.run_record import config_of_run, read_training

logger = logging.getLogger(__name__)

SEED = 0
T = TypeVar("T")


@dataclass(frozen=True)
class ValidationSet:
    """Examples that the model was not trained on; `source` is their name without a path."""

    source: str
    prepared: Prepared


def run_config(artifact: Artifact) -> Config | None:
    """The configuration of the run that trained this adapter, None where there is no such run."""
    return config_of_run(artifact) if artifact.kind == "adapter" else None


def find_validation_set(
    artifact: Artifact, tokenizer: Any, data: str | None, split: str | None
) -> ValidationSet | None:
    """The examples in `data`, else the run's validation set, else None."""
    config = run_config(artifact)
    if data is not None:
        prepared = _prepare_named(artifact, config, tokenizer, data, split)
        return ValidationSet(Path(data).name, prepared)
    if config is None:
        return None
    return _if_readable(lambda: validation_of_run(config, tokenizer), "quality is not measured")


def validation_of_run(config: Config, tokenizer: Any) -> ValidationSet | None:
    """The validation set of the run with this config, in memory; None if it has none."""
    data = config.data
    if data.eval is not None:
        own = data.of(Source(path=data.eval, split=data.eval_split or data.split))
        prepared = _prepare(own, data.eval, tokenizer, scores=config.method.name == "reward")
        return ValidationSet(Path(data.eval).name, prepared)
    return _split_off(config, tokenizer) if data.eval_fraction else None


def find_calibration(
    artifact: Artifact, tokenizer: Any, data: str | None, settings: Settings
) -> Calibration | None:
    """A sample of `data`, else of the run's training examples (never validation), else None."""
    config = run_config(artifact)
    if data is not None:
        prepared = _prepare_named(artifact, config, tokenizer, data, None)
        return sample_calibration(Path(data).name, prepared.examples, settings)
    if config is None:
        return None
    return _if_readable(
        lambda: run_calibration(config, tokenizer, settings),
        "no calibration",
    )


def find_training(artifact: Artifact, tokenizer: Any, data: str | None) -> ExampleSet | None:
    """The examples in `data`, else the run's training examples (never validation), else None."""
    config = run_config(artifact)
    if data is not None:
        return _prepare_named(artifact, config, tokenizer, data, None).examples
    if config is None:
        return None
    return _if_readable(lambda: _of_run(config, tokenizer)[0].examples, "no recovery")


def run_calibration(config: Config, tokenizer: Any, settings: Settings) -> Calibration:
    """A sample of the training examples of the run with this config. Raises UserError."""
    examples = _of_run(config, tokenizer)[0].examples
    return sample_calibration("the run's training examples", examples, settings)


def training_record(artifact: Artifact) -> dict[str, Any] | None:
    """The `training` value of export.json (docs/export-json.md), None without a run."""
    if run_config(artifact) is None:
        return None
    return _if_readable(
        lambda: read_training(artifact.folder.parent), "export.json leaves `training` out"
    )


def _of_run(config: Config, tokenizer: Any) -> tuple[Tokenized, Tokenized | None]:
    """The run's training examples, and those that `data.eval_fraction` split off.

    Of data that compares answers, the chosen or good ones; a reward model reads pairs.
    """
    if config.method.compares is None:
        return training_and_validation(config.data, tokenizer, config.train.seed)
    training, _ = compared(config.data, config.method.compares, tokenizer, config.train.seed)
    scores = config.method.name == "reward"
    return of_prepared(training if scores else training.good_answers()), None


def _split_off(config: Config, tokenizer: Any) -> ValidationSet:
    """What `data.eval_fraction` split off; of several sources, all examples.

    The conversations, which answers are generated for, are those with the run's template.
    """
    data = config.data
    name = f"{Path(data.train_name).name}, validation share {data.eval_fraction:g}"
    if config.method.name == "reward":
        held_out = compared(data, "pairs", tokenizer, config.train.seed)[1]
        assert held_out is not None  # data.eval_fraction is set
        return ValidationSet(name, held_out)
    sources = []
    for source in data.sources:
        prepared = prepare(data.of(source), assets.resolve(source.path), tokenizer, answers="auto")
        if source.max_examples is not None:
            prepared = prepared.select(np.arange(min(source.max_examples, len(prepared.examples))))
        sources.append(prepared)
    places = split_places(
        [source.examples for source in sources],
        data.eval_fraction,
        config.train.seed,
        [source.path for source in data.sources],
    )
    parts = [
        source.select(held_out).good_answers()
        for source, (_, held_out) in zip(sources, places, strict=True)
        if len(held_out)
    ]
    joined = join([of_prepared(part) for part in parts])
    conversations = [
        one for part in parts if part.template == joined.template for one in part.conversations
    ]
    examples = concatenate([part.examples for part in parts])
    return ValidationSet(name, Prepared(examples, conversations, joined.template, joined.report))


def _prepare_named(
    artifact: Artifact, config: Config | None, tokenizer: Any, data: str, split: str | None
) -> Prepared:
    """Data named on the command line, read with the run's settings; too long rows are dropped."""
    run_data = (
        config.data
        if config
        else check_data(
            {
                "train": data,
                "template": artifact.template or "auto",
                "system_prompt": artifact.system_prompt,
                "loss_on": artifact.loss_on or "completion",
            }
        )
    )
    update = {"train": data, "on_long": "drop", "split": split or "train"}
    named = run_data.model_copy(update=update)
    prepared = _prepare(named, data, tokenizer, scores=artifact.is_reward_model)
    for line in prepared.report.left_out():
        logger.info("%s: %s", Path(data).name, line)
    return prepared


def _prepare(data: DataConfig, source: str, tokenizer: Any, *, scores: bool = False) -> Prepared:
    """The examples of `source`; of data that compares answers, the chosen or good ones.

    scores: for a reward model, which reads all answers.
    """
    data = data.model_copy(update={"weight_column": None})  # which is of training alone
    prepared = prepare(data, assets.resolve(source), tokenizer, answers="auto")
    return prepared if scores else prepared.good_answers()


def sample_calibration(source: str, examples: ExampleSet, settings: Settings) -> Calibration:
    """A random sample of at most `settings.samples` examples, in the order of the data.

    Of pairs, both answers are examples.
    """
    if isinstance(examples, Pairs):
        examples = examples.answers
    order = np.random.default_rng(SEED).permutation(len(examples))[: settings.samples]
    rows = [examples[int(index)][0][: settings.sample_tokens] for index in np.sort(order)]
    return Calibration(source, rows)


def _if_readable(read: Callable[[], T], consequence: str) -> T | None:
    """What `read` returns; a warning and None where the run's data cannot be read.

    A run's folder may have been moved away from its data, which the user did not name here.
    """
    try:
        return read()
    except UserError as error:
        logger.warning("%s: the run's data cannot be read (%s)", consequence, error)
        return None
