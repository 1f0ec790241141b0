"""Translates a config file of another trainer to a config of intel_ft.

Files are read as data, by the safe YAML loader or as JSON. Python code is neither read nor run.
"""

import json
from pathlib import Path
from typing import Any

from intel_ft.config_text import parse_yaml, read_text
from intel_ft.errors import UserError
from intel_ft.recipes import axolotl, llama_factory, trl
from intel_ft.recipes.translation import Translation, flatten

_TRAINING_ARGUMENTS = (
    "output_dir",
    "per_device_train_batch_size",
    "num_train_epochs",
    "lr_scheduler_type",
    "dataset_name",
    "use_peft",
    "peft.r",
    "max_steps",
)


def translate(path: Path, devices: int = 1) -> Translation:
    """Translate the file at `path`, written for `devices` GPUs, and check the result.

    Raises UserError with one line for a file that cannot be read, is not of a supported trainer or
    not for supervised fine-tuning, and for values that cannot be combined here.
    """
    flat = flatten(_read(path))
    dialect = _dialect(path, flat)
    translation = Translation(path.name, dialect.NAME, flat)
    dialect.translate(translation, devices)
    translation.close()
    translation.checked()
    return translation


def _dialect(path: Path, flat: dict[str, Any]) -> Any:
    """The module that translates these keys."""
    if "base_model" in flat:
        return axolotl
    factory = ("finetuning_type", "stage", "cutoff_len", "lora_rank", "template", "dataset_dir")
    if "model_name_or_path" in flat and any(key in flat for key in factory):
        return llama_factory
    grouped = trl.regroup(flat)
    if any(key in grouped for key in _TRAINING_ARGUMENTS):
        return trl
    if "model.name_or_path" in flat:
        raise UserError(
            f"{path}: this is already a config of intel-ft: check it with intel-ft validate {path}"
        )
    raise UserError(
        f"{path}: not a config of a supported trainer: Axolotl's has base_model, LLaMA-Factory's"
        " has model_name_or_path with finetuning_type or stage, those of TRL and Transformers"
        " have output_dir or per_device_train_batch_size"
    )


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(f"{path}: only .yaml, .yml and .json files are read, never code")
    text = read_text(path)
    values = _parse_json(text, path) if path.suffix == ".json" else parse_yaml(text, str(path))
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path}: expected a mapping of keys to values")
    return values


def _parse_json(text: str, path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is set twice")
        return values

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
