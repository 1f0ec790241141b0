"""The quantization settings of `--set`, `--settings` and `model.quantization`: schema, checks."""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from intel_ft.config_sources import Section
from intel_ft.config_text import message_of, parse_value, parse_yaml, read_text
from intel_ft.errors import UserError

Format = Literal["fp16", "int8", "int4", "nf4", "mxfp4"]
FOUR_BIT: tuple[Format, ...] = ("int4", "nf4", "mxfp4")


class Settings(Section):
    """Quantization of weights and activations, under the names of NNCF and Optimum-Intel.

    None leaves a value to the base's tuned recipe, else to the format's default.
    """

    recipe: Literal["auto", "none"] = "auto"  # auto: Optimum-Intel's for the base, if any
    group_size: int | None = Field(None, ge=-1)  # weights per scale; -1: one per channel
    group_size_fallback: Literal["adjust", "error", "ignore"] | None = None
    # Share of layers in 4 bits, the others in 8; NNCF silently treats 0 as 1.
    ratio: float | None = Field(None, gt=0, le=1)
    sym: bool | None = None  # symmetric: no zero point
    all_layers: bool | None = None  # embeddings and last layer in 4 bits, too
    backup_precision: Literal["none", "int8_sym", "int8_asym"] | None = None
    sensitivity_metric: (
        Literal[
            "weight_quantization_error",
            "hessian_input_activation",
            "mean_activation_variance",
            "max_activation_variance",
            "mean_activation_magnitude",
        ]
        | None
    ) = None  # chooses the layers that `ratio` keeps in 8 bits
    awq: bool | None = None
    scale_estimation: bool | None = None
    gptq: bool | None = None
    lora_correction: bool | None = None
    ignored_layers: list[str] | None = None  # patterns of IR node names that stay in fp16
    activations: Literal["none", "int8"] = "none"  # int8 needs calibration data
    smooth_quant_alpha: float | None = Field(None, ge=0, le=1)
    dynamic_group_size: int | None = Field(None, ge=0)  # of activations at run time; 0: off
    kv_cache: Literal["auto", "u8", "u4", "f16", "bf16", "f32"] = "auto"
    recover_steps: int = Field(600, ge=1)  # of export --recover
    recover_minutes: float = Field(60, gt=0)  # after which it stops
    recover_rank: int | None = Field(None, ge=0)  # of the corrections; 0: whole matrices
    recover_rate: float = Field(1e-3, gt=0)  # learning rate
    samples: int = Field(128, ge=1)  # number of calibration examples
    sample_tokens: int = Field(512, ge=8)  # maximum tokens per calibration example

    @model_validator(mode="after")
    def _check_group_size(self) -> "Settings":
        if self.group_size == 0:
            raise ValueError("group_size must be above 0, or -1 for one scale per channel")
        return self


def read_settings(file: Path | None, pairs: list[str]) -> Settings:
    """The settings in a YAML file, overridden by `KEY=VALUE` pairs.

    Raises UserError, one line, naming the file or pair and the key.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = parse_yaml(read_text(file), str(file)) or {}
        if not isinstance(values, dict):
            raise UserError(f"{file}: expected KEY: VALUE lines")
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise UserError(f"--set {pair!r}: write it as KEY=VALUE")
        field = Settings.model_fields.get(key)
        values[key] = parse_value(text, field.annotation if field else None, f"--set {pair!r}")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        origin = "--set" if file is None else f"{file} and --set" if pairs else str(file)
        problems = dict.fromkeys(_describe(problem) for problem in error.errors())
        raise UserError(f"{origin}: {'; '.join(problems)}") from None


def _describe(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"][:1]))
    if problem["type"] == "extra_forbidden":
        names = list(Settings.model_fields)
        close = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"settings are: {', '.join(names)}"
        return f"unknown setting {key} ({hint})"
    message = message_of(problem)
    return f"{key}={problem['input']}: {message[0].lower()}{message[1:]}" if key else message


def for_device(settings: Settings, device: str) -> Settings:
    """`settings`, for an NPU with the 4-bit defaults that OpenVINO requires there.

    These are symmetric weights, one scale per channel and every layer in 4 bits (OpenVINO GenAI's
    NPU guide, 2026). Values that the user set stay.
    """
    if device != "NPU":
        return settings
    npu = {"recipe": "none", "sym": True, "group_size": -1, "ratio": 1.0}
    return Settings(**(npu | settings.model_dump(exclude_unset=True)))


RECOVERY = ("recover_steps", "recover_minutes", "recover_rank", "recover_rate")
_NOT_FOR_A_BASE = {
    "awq": "it moves scales from one layer into another, and the adapter is trained without them",
    "lora_correction": "it adds correction matrices to the weights",
    "activations": "the weights alone are compressed for training",
    "smooth_quant_alpha": "the weights alone are compressed for training",
    "kv_cache": "it is set by export --adapter",
    "dynamic_group_size": "it is set by export --adapter",
    **dict.fromkeys(RECOVERY, "it is for export --recover"),
}


def base_format(values: dict[str, Any]) -> Format:
    """The format that `model.quantization` asks for: int4, or all weights in int8."""
    chosen = values.get("format", "int4")
    if chosen not in ("int4", "int8"):
        raise UserError(
            f"model.quantization: format={chosen}: must be int4 or int8, for training adapters"
        )
    return "int8" if chosen == "int8" else "int4"


def base_settings(values: dict[str, Any]) -> Settings:
    """The settings that `model.quantization` holds, for the int4 base of a training.

    Without a value of the user, AWQ is off. Raises UserError for an unknown key, a wrong value, and
    settings that change more than the weights of each layer.
    """
    base_format(values)
    values = {key: value for key, value in values.items() if key != "format"}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(_describe(problem) for problem in error.errors())
        raise UserError(f"model.quantization: {'; '.join(problems)}") from None
    for key, why in _NOT_FOR_A_BASE.items():
        if key in values and values[key] not in (False, None, "none", "auto"):
            raise UserError(f"model.quantization: {key} cannot be used with int4 weights: {why}")
    return settings.model_copy(update={"awq": False})
