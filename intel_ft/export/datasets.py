"""The data an export needs: training examples to calibrate on, held-out ones to measure on; called
from export.openvino.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from intel_ft import assets
from intel_ft.artifacts.resolve import Artifact
from intel_ft.config import Config, check_data, load
from intel_ft.data.prepare import Prepared, prepare, split_fraction
from intel_ft.errors import UserError
from intel_ft.export.quantize import Calibration
from intel_ft.export.settings import Settings
from intel_ft.training.run_record import read_training

log = logging.getLogger(__name__)

SEED = 0
Found = TypeVar("Found")


@dataclass(frozen=True)
class HeldOut:
    """Examples that the model has not seen; `source` is their name without a path."""

    source: str
    prepared: Prepared


def run_config(artifact: Artifact) -> Config | None:
    """The configuration of the run whose adapter this is, None where there is no such run."""
    path = artifact.folder.parent / "config.yaml"
    return load(path) if artifact.kind == "adapter" and path.is_file() else None


def find_heldout(
    artifact: Artifact, tokenizer: Any, data: str | None, split: str | None
) -> HeldOut | None:
    """`data`, or what the run held out of its training, or None where there is neither."""
    config = run_config(artifact)
    if data is not None:
        return HeldOut(Path(data).name, _given(artifact, config, tokenizer, data, split))
    if config is None:
        return None
    own = config.data
    if own.eval is not None:
        source = own.eval
        other = own.model_copy(update={"split": own.eval_split or own.split})
        return _or_none(
            lambda: HeldOut(Path(source).name, prepare(other, assets.resolve(source), tokenizer)),
            "nothing to measure on",
        )
    if own.eval_fraction:
        name = f"{Path(own.train).name}, {own.eval_fraction:g} of it held out"
        return _or_none(
            lambda: HeldOut(name, _training(config, tokenizer)[1]), "nothing to measure on"
        )
    return None


def find_calibration(
    artifact: Artifact, tokenizer: Any, data: str | None, settings: Settings
) -> Calibration | None:
    """Examples of `data`, or of the run's own training (never held-out ones), or None."""
    config = run_config(artifact)
    if data is not None:
        return _sample(Path(data).name, _given(artifact, config, tokenizer, data, None), settings)
    if config is None:
        return None
    return _or_none(
        lambda: _sample("the run's training examples", _training(config, tokenizer)[0], settings),
        "nothing to calibrate on",
    )


def training_record(artifact: Artifact) -> dict[str, Any] | None:
    """What export.json says about the run (docs/export.md), None without one."""
    if run_config(artifact) is None:
        return None
    return _or_none(lambda: read_training(artifact.folder.parent), "training is left out")


def _training(config: Config, tokenizer: Any) -> tuple[Prepared, Prepared]:
    """The examples that were trained on, and those that `data.eval_fraction` held out."""
    prepared = prepare(config.data, assets.resolve(config.data.train), tokenizer)
    if config.data.eval is None and config.data.eval_fraction:
        return split_fraction(prepared, config.data.eval_fraction, config.train.seed)
    return prepared, prepared


def _given(
    artifact: Artifact, config: Config | None, tokenizer: Any, data: str, split: str | None
) -> Prepared:
    """Data named on the command line, read as the run reads its own; too long rows are left out."""
    own = (
        config.data
        if config
        else check_data(
            {
                "train": data,
                "template": artifact.template or "auto",
                "system_prompt": artifact.system_prompt,
            }
        )
    )
    update = {"train": data, "on_long": "drop", "split": split or "train"}
    return prepare(own.model_copy(update=update), assets.resolve(data), tokenizer)


def _sample(source: str, prepared: Prepared, settings: Settings) -> Calibration:
    examples = prepared.examples
    order = np.random.default_rng(SEED).permutation(len(examples))[: settings.samples]
    rows = [examples[int(index)][0][: settings.sample_tokens] for index in np.sort(order)]
    return Calibration(source, rows)


def _or_none(make: Callable[[], Found], without: str) -> Found | None:
    """Data that nobody named is used where it still is; a run may have moved away from it."""
    try:
        return make()
    except UserError as error:
        log.warning("%s: the run's own data cannot be read (%s)", without, error)
        return None
