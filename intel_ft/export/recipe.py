"""Which options Optimum-Intel and NNCF are given: the format's defaults, the base's tuned recipe,
the user's settings, in that order; called from export.quantize.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from intel_ft.errors import UserError
from intel_ft.export.settings import FOUR_BIT, Format, Settings

GROUP_SIZE = {"int4": 128, "nf4": 64, "mxfp4": 32}
"""int4: Optimum-Intel's default; nf4: QLoRA's (arXiv 2305.14314); mxfp4: fixed by the OCP MX
specification 1.0."""

DATA_AWARE = ("scale_estimation", "gptq", "lora_correction")
_SAME_NAME = (
    "group_size",
    "group_size_fallback",
    "ratio",
    "sym",
    "all_layers",
    "backup_precision",
    "sensitivity_metric",
    *DATA_AWARE,
)


@dataclass(frozen=True)
class Recipe:
    """The base's recipe in Optimum-Intel. `id`: whose it is, None where there is none; `why`: a
    line for people; `options`: as Optimum-Intel has them.
    """

    id: str | None
    used: bool
    why: str
    options: dict[str, Any]


def find_recipe(base_ids: list[str], format: Format, settings: Settings) -> Recipe:
    """The recipe of the first of `base_ids` (ids, or folders whose names are looked up) that has
    one for `format`. Only int4 and int8 have any.
    """
    from optimum.intel.openvino.configuration import get_default_quantization_config

    names = list(dict.fromkeys(public_id(name) for name in base_ids if name))
    if format not in ("int4", "int8"):
        return Recipe(None, False, f"{format}: Optimum-Intel has no recipes for it", {})
    for name in names:
        options = get_default_quantization_config(name, weight_format=format)
        if options:
            plain = _plain(options)
            if settings.recipe == "none":
                why = f"{format}: the tuned recipe of {name} is not used: recipe=none"
                return Recipe(name, False, why, {})
            return Recipe(
                name, True, f"{format}: the tuned recipe of {name}: {_said(plain)}", plain
            )
    known = " or ".join(names) or "a model without an id"
    why = f"{format}: Optimum-Intel has no tuned recipe for {known}: the defaults are used"
    return Recipe(None, False, why, {})


def public_id(name: str) -> str:
    """A Hub id or asset as it is; of a path its last part, so that no path leaves this machine."""
    path = Path(name)
    return path.resolve().name if path.is_dir() or name.count("/") > 1 else name


def options_for(
    format: Format, settings: Settings, recipe: Recipe, calibrated: bool
) -> dict[str, Any]:
    """Keyword arguments of OVWeightQuantizationConfig for `format`, {} for fp16.

    Raises UserError where settings and format, or settings and a recipe of several stages, do not
    go together, or where they need calibration data and there is none.
    """
    own = _users(settings)
    if format == "fp16":
        _refuse(format, own, settings)
        return {}
    if recipe.used and "bits" not in recipe.options:
        if own:
            raise UserError(
                f"the recipe of {recipe.id} has several stages, which {', '.join(own)} cannot be "
                "mixed with: leave them out, or set recipe=none"
            )
        return dict(recipe.options)
    options: dict[str, Any] = {"bits": 8 if format == "int8" else 4, "dtype": format}
    if format in FOUR_BIT:
        # NNCF adjusts no groups of mxfp4 (3.4): layers that 32 does not divide stay in fp16.
        fallback = "ignore" if format == "mxfp4" else "adjust"
        options |= {"group_size": GROUP_SIZE[format], "group_size_fallback": fallback, "ratio": 1.0}
    if format == "int4":
        options |= {"sym": False}
        if calibrated and not recipe.used:
            options |= {"quant_method": "awq", "scale_estimation": True}
    if format == "int8":
        options |= {"sym": False}
    options |= recipe.options | own
    if recipe.used and not calibrated:  # its data set is on the Hub, and not the run's
        options = {key: value for key, value in options.items() if key not in DATA_AWARE}
    asked = [key for key in DATA_AWARE if own.get(key)]
    if settings.activations == "int8":
        asked.append("activations")
    if asked and not calibrated:
        raise UserError(f"{asked[0]} needs calibration data: give --calibration, or export a run")
    return options


def uses_data(options: dict[str, Any], settings: Settings) -> bool:
    """Whether calibration data would change anything."""
    mixed = options.get("ratio", 1.0) < 1 and options.get("sensitivity_metric") != (
        "weight_quantization_error"
    )
    return (
        mixed
        or settings.activations == "int8"
        or options.get("quant_method") == "awq"
        or any(options.get(key) for key in DATA_AWARE)
    )


def _users(settings: Settings) -> dict[str, Any]:
    own = {key: getattr(settings, key) for key in _SAME_NAME if getattr(settings, key) is not None}
    if settings.awq is not None:
        own["quant_method"] = "awq" if settings.awq else "default"
    if settings.ignored_layers is not None:
        own["ignored_scope"] = {"patterns": settings.ignored_layers}
    if settings.dynamic_group_size is not None:
        own["dq_group_size"] = settings.dynamic_group_size
    return own


def _refuse(format: Format, own: dict[str, Any], settings: Settings) -> None:
    names = [*own, *(["activations"] if settings.activations != "none" else [])]
    if names:
        raise UserError(f"--format {format} quantizes nothing, so {names[0]} says nothing here")


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """`options` as JSON values, without the data set: calibration is ours."""
    plain = {}
    for key, value in options.items():
        if isinstance(value, dict):
            plain[key] = _plain(value)
        elif key != "dataset":
            plain[key] = value.value if isinstance(value, Enum) else value
    return plain


def _said(options: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
