"""What a run's meaning depends on, by name: compared between ranks, and when a run resumes.

A checkpoint keeps these facts. A difference that would make the resumed run another one is refused
by name; one that takes effect from here on is reported.
"""

import json
import logging
import platform
from dataclasses import asdict
from pathlib import Path

from intel_ft.artifacts.fingerprints import (
    config_fingerprint,
    hash_of,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from intel_ft.backends import choice
from intel_ft.config import Config
from intel_ft.errors import UserError
from intel_ft.models.load import model_folder
from intel_ft.models.weight_files import weight_files
from intel_ft.templates.examples import ExampleSet
from intel_ft.training.distillation import OWN_BASE, teacher_config
from intel_ft.training.setup import Inputs
from intel_ft.training.start import adapter_fingerprint
from intel_ft.training.stream_rows import DATA

BASE_WEIGHTS = "base weights"
INT4_WEIGHTS = "int4 weights"
_NONE = "none"
# Files may lie elsewhere on another host or later: their contents are compared.
_PATHS = (
    *("model.name_or_path", "model.revision", "model.adapter"),
    *("data.train", "data.eval", "method.teacher"),
)
_REFUSED = (
    *("train.learning_rate", "train.scheduler", "train.warmup_ratio", "train.weight_decay"),
    *("train.optimizer", "train.seed", "train.global_batch_size", "base format"),
    *("train.best_metric", "train.router_aux_loss", "train.keep_answers_together"),
    *(BASE_WEIGHTS, INT4_WEIGHTS, "base config.json", "teacher weights", "training data"),
    *("mixture", "evaluation data"),
    *("model.adapter_mode", "model.add_tokens", "model.add_special_tokens"),
)
# Any other difference is reported: these change nothing that is computed, or are said elsewhere.
_UNSAID = (
    *("train.epochs", "train.max_steps"),  # training.checkpoint tells of another number of steps
    *("train.save_steps", "train.keep_checkpoints", "train.logging_steps", "train.report_to"),
    *("train.max_tokens_per_row", "train.activation_checkpointing"),
    *("model.allow_pickle", "data.cache", "data.cache_gib"),
)
_FINGERPRINTS = (
    *(BASE_WEIGHTS, INT4_WEIGHTS, "base config.json", "teacher weights", "adapter weights"),
    *("training data", "evaluation data", "tokenizer"),
)
REMEDIES = {
    BASE_WEIGHTS: "model.name_or_path",
    INT4_WEIGHTS: "model.quantization, the calibration data and the version of nncf",
    "base config.json": "model.name_or_path",
    "base format": "model.base_dtype",
    "dtype": "model.dtype",
    "teacher weights": "method.teacher",
    "adapter weights": "model.adapter",
    "training data": DATA,
    "mixture": "the weights in data.train",
    "evaluation data": "data.eval or data.eval_fraction",
    "newest checkpoint": "output.directory, on a file system that all hosts share",
}

logger = logging.getLogger(__name__)

Facts = dict[str, str]


def settings_facts(config: Config, packages: dict[str, str | None], start: Path | None) -> Facts:
    """What all ranks must have in common before they read data: versions, config and checkpoint."""
    values = config.model_dump(mode="json")
    settings = {
        name: json.dumps(value, ensure_ascii=False)
        for section, keys in values.items()
        for key, value in keys.items()
        if (name := f"{section}.{key}") not in _PATHS
    }
    return {
        "Python version": platform.python_version(),
        **{f"version of {name}": str(number) for name, number in packages.items()},
        **settings,
        "newest checkpoint": start.name if start else _NONE,
    }


def content_facts(config: Config, inputs: Inputs, local_rank: int = 0) -> Facts:
    """What the run reads: fingerprints of base, teacher, examples and tokenizer; and its dtype."""
    evaluation = inputs.validation
    return {
        BASE_WEIGHTS: _weights(inputs.folder),
        "base config.json": config_fingerprint(inputs.folder),
        "base format": config.base_dtype,
        "dtype": str(choice.dtype_of(config, local_rank)).removeprefix("torch."),
        "teacher weights": _teacher(config),
        "adapter weights": adapter_fingerprint(config.model) or _NONE,
        "training data": _examples(inputs.training.examples),
        "mixture": json.dumps([asdict(part) for part in inputs.training.parts]),
        "evaluation data": _NONE if evaluation is None else _examples(evaluation.examples),
        "tokenizer": tokenizer_fingerprint(inputs.tokenizer),
        "prompt template": inputs.training.template,
    }


def stored_facts(config: Config, contents: Facts) -> Facts:
    """What a checkpoint keeps: the contents, and the settings in the sections that matter."""
    values = config.model_dump(mode="json")
    sections = ("model", "data", "method", "train")
    settings = {
        f"{part}.{key}": json.dumps(v) for part in sections for key, v in values[part].items()
    }
    return {name: text for name, text in settings.items() if name not in _PATHS} | contents


def check_facts(checkpoint: Path, before: Facts, now: Facts) -> None:
    """Raise UserError, naming every difference that a resumed run must not have; report others."""
    changed = [name for name in before if name in now and before[name] != now[name]]
    if before.get("evaluation data") == _NONE and "evaluation data" in changed:
        changed.remove("evaluation data")  # nothing was measured yet
        logger.info(
            "%s: the run had no evaluation data; evaluation starts with this step", checkpoint
        )
    refused = [name for name in changed if name in _REFUSED or name.startswith("method.")]
    if refused:
        restore = ", ".join(dict.fromkeys(REMEDIES.get(name, name) for name in refused))
        differences = "; ".join(_difference(name, before[name], now[name]) for name in refused)
        raise UserError(
            f"{checkpoint} belongs to another run: {differences}: restore {restore}, or start "
            "again with --overwrite"
        )
    for name in changed:
        if name not in _UNSAID:
            logger.info("%s: %s", checkpoint, _difference(name, before[name], now[name]))


def _difference(name: str, before: str, now: str) -> str:
    if name in _FINGERPRINTS:
        return f"the {name} differs from that of the start (fingerprint {before}, now {now})"
    return f"{name} was {before} when this run started, and is now {now}"


def _examples(examples: ExampleSet) -> str:
    return hash_of(examples.hashes.tobytes())


def _teacher(config: Config) -> str:
    if config.method.teacher in (None, OWN_BASE):
        return _NONE
    folder = model_folder(teacher_config(config))
    return _weights(folder)


def _weights(folder: Path) -> str:
    files = weight_files(folder) or sorted(folder.glob("*.bin"))  # pickles, and an IR's weights
    return weights_fingerprint(files)
