"""Another trainer's config file in our terms; called from cli.init.

Files are read as data: YAML by its safe loader, JSON. Python is never run or read.
"""

import json
from pathlib import Path
from typing import Any

import yaml

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
    """Translate the file at `path`, which ran on `devices` GPUs, and check the result.

    Raises UserError, one line, for a file that cannot be read, is of no known trainer or of other
    training than supervised fine-tuning, and for a value outside our bounds.
    """
    flat = flatten(_read(path))
    dialect = _dialect(path, flat)
    translation = Translation(path.name, dialect.NAME, flat)
    dialect.translate(translation, devices)
    translation.close()
    translation.checked()
    return translation


def _dialect(path: Path, flat: dict[str, Any]) -> Any:
    """The module that knows these keys."""
    if "base_model" in flat:
        return axolotl
    factory = ("finetuning_type", "stage", "cutoff_len", "lora_rank", "template", "dataset_dir")
    if "model_name_or_path" in flat and any(key in flat for key in factory):
        return llama_factory
    grouped = trl.regroup(flat)
    if any(key in grouped for key in _TRAINING_ARGUMENTS):
        return trl
    if "model.name_or_path" in flat:
        raise UserError(f"{path}: this is a config of intel-ft already: intel-ft validate {path}")
    raise UserError(
        f"{path}: of no trainer known here: Axolotl has base_model, LLaMA-Factory "
        "model_name_or_path with finetuning_type or stage, TRL and Transformers output_dir and "
        "per_device_train_batch_size"
    )


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(f"{path}: only .yaml, .yml and .json are read, code never is")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be parsed: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not values:
        raise UserError(f"{path}: expected keys with values")
    return values
