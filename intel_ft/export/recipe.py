"""Quantization options: the format's defaults, the base's tuned recipe, the user's settings.

Each overrides what comes before it.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from intel_ft.errors import UserError
from intel_ft.quantization import FOUR_BIT, Format, Settings

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
class QuantizationRecipe:
    """Optimum-Intel's tuned recipe for a base model.

    `id`: the model it was tuned for, None where there is no recipe; `why`: one line that says
    which recipe is used or why none is; `options`: in Optimum-Intel's form.
    """

    id: str | None
    used: bool
    why: str
    options: dict[str, Any]


def find_recipe(
    base_ids: list[str], weight_format: Format, settings: Settings
) -> QuantizationRecipe:
    """The recipe for `weight_format` of the first of `base_ids` that has one.

    A base id is a Hub id, or a folder whose name is looked up. Only int4 and int8 have recipes.
    """
    from optimum.intel.openvino.configuration import get_default_quantization_config

    names = list(dict.fromkeys(public_id(name) for name in base_ids if name))
    if weight_format not in ("int4", "int8"):
        return QuantizationRecipe(
            None, False, f"{weight_format}: Optimum-Intel has no recipes for this format", {}
        )
    for name in names:
        options = get_default_quantization_config(name, weight_format=weight_format)
        if options:
            values = _json_values(options)
            if settings.recipe == "none":
                why = f"{weight_format}: the tuned recipe for {name} is not used (recipe=none)"
                return QuantizationRecipe(name, False, why, {})
            listed = ", ".join(f"{key} {value}" for key, value in values.items())
            return QuantizationRecipe(
                name, True, f"{weight_format}: using the tuned recipe for {name}: {listed}", values
            )
    model = " or ".join(names) or "a model without an id"
    why = f"{weight_format}: Optimum-Intel has no tuned recipe for {model}: using default settings"
    return QuantizationRecipe(None, False, why, {})


def public_id(name: str) -> str:
    """A Hub id or asset name unchanged; of a path only the last part: paths stay private."""
    path = Path(name)
    return path.resolve().name if path.is_dir() or name.count("/") > 1 else name


def options_for(
    weight_format: Format, settings: Settings, recipe: QuantizationRecipe, calibrated: bool
) -> dict[str, Any]:
    """Keyword arguments of OVWeightQuantizationConfig for `weight_format`, {} for fp16.

    Raises UserError where the settings do not fit the format or a recipe of several stages, or
    where they need calibration data and there is none.
    """
    user_options = _user_options(settings)
    if weight_format == "fp16":
        _refuse_settings(weight_format, user_options, settings)
        return {}
    if recipe.used and "bits" not in recipe.options:
        if user_options:
            raise UserError(
                f"the recipe for {recipe.id} has several stages and cannot be combined with "
                f"{', '.join(user_options)}: remove these settings, or set recipe=none"
            )
        return dict(recipe.options)
    options: dict[str, Any] = {"bits": 8 if weight_format == "int8" else 4, "dtype": weight_format}
    if weight_format in FOUR_BIT:
        # NNCF (3.4) cannot adjust mxfp4 groups: layers not divisible by 32 stay in fp16.
        fallback = "ignore" if weight_format == "mxfp4" else "adjust"
        options |= {
            "group_size": GROUP_SIZE[weight_format],
            "group_size_fallback": fallback,
            "ratio": 1.0,
        }
    if weight_format == "int4":
        options |= {"sym": False}
        if calibrated and not recipe.used:
            options |= {"quant_method": "awq", "scale_estimation": True}
    if weight_format == "int8":
        options |= {"sym": False}
    options |= recipe.options | user_options
    if recipe.used and not calibrated:  # its data set is on the Hub
        options = {key: value for key, value in options.items() if key not in DATA_AWARE}
    needing_data = [key for key in DATA_AWARE if user_options.get(key)]
    if settings.activations == "int8":
        needing_data.append("activations")
    if needing_data and not calibrated:
        raise UserError(
            f"{needing_data[0]} needs calibration data: name it with --calibration, or export a run"
        )
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


def _user_options(settings: Settings) -> dict[str, Any]:
    """The settings that the user made, under Optimum-Intel's names."""
    user_options = {
        key: getattr(settings, key) for key in _SAME_NAME if getattr(settings, key) is not None
    }
    if settings.awq is not None:
        user_options["quant_method"] = "awq" if settings.awq else "default"
    if settings.ignored_layers is not None:
        user_options["ignored_scope"] = {"patterns": settings.ignored_layers}
    if settings.dynamic_group_size is not None:
        user_options["dq_group_size"] = settings.dynamic_group_size
    return user_options


def _refuse_settings(
    weight_format: Format, user_options: dict[str, Any], settings: Settings
) -> None:
    names = [*user_options, *(["activations"] if settings.activations != "none" else [])]
    if names:
        raise UserError(
            f"--format {weight_format} does not quantize: remove the setting {names[0]}"
        )


def _json_values(options: dict[str, Any]) -> dict[str, Any]:
    """`options` as JSON values, without the data set, which the calibration data replaces."""
    plain = {}
    for key, value in options.items():
        if isinstance(value, dict):
            plain[key] = _json_values(value)
        elif key != "dataset":
            plain[key] = value.value if isinstance(value, Enum) else value
    return plain
