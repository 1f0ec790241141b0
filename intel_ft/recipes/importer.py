"""Translates a config file of another trainer to a config of intel_ft.

Files are read as data, by the safe YAML loader or as JSON. Python code is neither read nor run.
"""

import json
from pathlib import Path
from typing import Any

from intel_ft.config_text import parse_yaml, read_text
from intel_ft.errors import UserError
from intel_ft.recipes import axolotl, llama_factory, trl
from intel_ft.recipes.measured import Measured, measure
from intel_ft.recipes.recognize import AXOLOTL, LLAMA_FACTORY, TRL, refuse_unknown, trainer_of
from intel_ft.recipes.translation import Translation, flatten

_TRANSLATORS = {
    AXOLOTL: axolotl.translate,
    LLAMA_FACTORY: llama_factory.translate,
    TRL: trl.translate,
}


def translate(path: Path, devices: int = 1) -> Translation:
    """Translate the file at `path`, written for `devices` GPUs, and check the result.

    Where model and data are on this machine, the data is measured, so that packed rows, epochs and
    steps become examples and steps. Raises UserError with one line for a file that cannot be read,
    is not of a supported trainer or not for supervised fine-tuning, and for values that cannot be
    combined here.
    """
    flat = flatten(_read(path))
    trainer = trainer_of(path, flat)
    translation = _translated(path, trainer, flat, devices, None)
    measured = measure(translation.checked())
    if measured is not None:
        translation = _translated(path, trainer, flat, devices, measured)
        translation.checked()
    return translation


def _translated(
    path: Path, trainer: str, flat: dict[str, Any], devices: int, measured: Measured | None
) -> Translation:
    translation = Translation(path.name, trainer, dict(flat), measured)
    _TRANSLATORS[trainer](translation, devices)
    refuse_unknown(translation, flat)
    translation.close()
    return translation


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(f"{path}: only .yaml, .yml and .json files are read, never code")
    text = read_text(path)
    values = _parse_json(text, path) if path.suffix == ".json" else parse_yaml(text, str(path))
    if not isinstance(values, dict) or not values:
        fact = "is empty" if not values else "is a list or text"
        raise UserError(f"{path}: {fact}: expected keys with values, such as learning_rate: 2e-4")
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
