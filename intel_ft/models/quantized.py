"""Bases that were published quantized: which can be used, and which are refused by name.

MXFP4 (gpt-oss) and FP8 in blocks (DeepSeek-V3, Qwen3-FP8) can be trained: models.published
dequantizes them while they are loaded, so that an adapter can be merged. Of the others Transformers
loads bitsandbytes' on a CPU, but only to infer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import read_json
from intel_ft.errors import UserError

_INFERENCE_ONLY = "bitsandbytes"
_KEYS = ("quantization_config", "compression_config", "quantization")  # the last one is MLX's


@dataclass(frozen=True)
class Published:
    """A format that is dequantized on loading; block: rows and columns of FP8's blocks."""

    method: str
    block: tuple[int, int] | None = None


def quantization(config: dict[str, Any]) -> dict[str, Any]:
    """The quantization of the model whose config.json is `config`; {} if it has none."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in _KEYS:
            if isinstance(part.get(key), dict):
                return dict(part[key])
    return {}


def published(folder: Path) -> Published | None:
    """The format of the weights in `folder`, if models.published dequantizes it."""
    settings = quantization(read_json(folder / "config.json"))
    method, block = settings.get("quant_method"), settings.get("weight_block_size")
    if method == "mxfp4":
        return Published(method)
    if method == "fp8" and settings.get("fmt", "e4m3") == "e4m3":
        match block:
            case [int(rows), int(columns)] if rows > 0 and columns > 0:
                return Published(method, (rows, columns))
    return None


def refuse_quantized(folder: Path, *, training: bool) -> None:
    """Raise UserError if the weights in `folder` are quantized in a way that cannot be used."""
    settings = quantization(read_json(folder / "config.json"))
    method = str(settings.get("quant_method", "unknown method"))
    if not settings or published(folder) or (method == _INFERENCE_ONLY and not training):
        return
    bits = settings.get("bits") or settings.get("w_bit")
    raise UserError(
        f"{folder / 'config.json'}: the model is quantized ({method}"
        f"{f', {bits} bits' if bits else ''}), and such weights cannot be "
        f"{'trained or merged' if training else 'loaded'}: use the unquantized model that it was "
        "made from (method.name=qlora and model.base_dtype=int8 quantize it for training)"
    )


def forget_quantization(description: Any) -> None:
    """Take the quantization out of a model's config, in place."""
    for part in (description, description.get_text_config()):
        for key in _KEYS:
            if hasattr(part, key):
                delattr(part, key)
