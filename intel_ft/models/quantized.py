"""Bases that were published quantized: which can be used, and which are refused by name.

Only MXFP4 (gpt-oss) can be trained: it is dequantized to bf16 while it is loaded, so that an
adapter can be merged. Of the others Transformers loads bitsandbytes' on a CPU, but only to infer.
"""

from pathlib import Path
from typing import Any

from intel_ft.artifacts.resolve import read_json
from intel_ft.errors import UserError

_DEQUANTIZED = "mxfp4"
_INFERENCE_ONLY = "bitsandbytes"


def quantization(config: dict[str, Any]) -> dict[str, Any]:
    """The quantization of the model whose config.json is `config`; {} if it has none."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part.get(key), dict):
                return dict(part[key])
    return {}


def refuse_quantized(folder: Path, *, training: bool) -> None:
    """Raise UserError if the weights in `folder` are quantized in a way that cannot be used."""
    settings = quantization(read_json(folder / "config.json"))
    method = str(settings.get("quant_method", "unknown method"))
    usable = {_DEQUANTIZED} if training else {_DEQUANTIZED, _INFERENCE_ONLY}
    if not settings or method in usable:
        return
    bits = settings.get("bits") or settings.get("w_bit")
    raise UserError(
        f"{folder / 'config.json'}: the model is quantized ({method}"
        f"{f', {bits} bits' if bits else ''}), and such weights cannot be "
        f"{'trained or merged' if training else 'loaded'}: use the unquantized model that it was "
        "made from (method.name=qlora and model.base_dtype=int8 quantize it for training)"
    )


def dequantization(folder: Path) -> dict[str, Any]:
    """The argument of `from_pretrained` that loads MXFP4 weights as bf16; {} for other models."""
    settings = quantization(read_json(folder / "config.json"))
    if settings.get("quant_method") != _DEQUANTIZED:
        return {}
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)}


def forget_quantization(model: Any) -> None:
    """Let a dequantized model be saved with all of its weights.

    Transformers 5.5 keeps the conversions that dequantized the weights, and reverses them when it
    saves: the experts would be missing in the file.
    """
    conversions = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [
        conversion
        for conversion in conversions
        if not any(name.endswith("_blocks") for name in conversion.source_patterns)
    ]
