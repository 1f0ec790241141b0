"""Quantize an fp16 IR with Optimum-Intel and NNCF."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.resolve import is_reward_model
from intel_ft.errors import UserError
from intel_ft.export.paged_out import paged_out
from intel_ft.quantization import Settings


@dataclass(frozen=True)
class Calibration:
    """Calibration examples: token ids, int32 [tokens] each."""

    source: str
    rows: list[npt.NDArray[np.int32]]

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows."""
        return sum(map(len, self.rows))


def quantize(
    folder: Path,
    output: Path,
    options: dict[str, Any],
    settings: Settings,
    calibration: Calibration | None,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Write the fp16 IR in `folder`, quantized with `options` (`recipe.options_for`), to `output`.

    Without options the weights stay as they are; the KV-cache precision is set in either case.
    Raises UserError for options that Optimum-Intel or NNCF reject.
    """
    from optimum.intel import OVModelForCausalLM, OVModelForSequenceClassification

    kind = OVModelForSequenceClassification if is_reward_model(folder) else OVModelForCausalLM
    model = kind.from_pretrained(folder, compile=False, trust_remote_code=trust_remote_code)
    with paged_out(folder):
        if options:
            data = _dataset(model, calibration) if calibration else None
            _compress(model, options, settings, data, trust_remote_code)
        if settings.kv_cache != "auto":
            model.model.set_rt_info(settings.kv_cache, ["runtime_options", "KV_CACHE_PRECISION"])
        model.save_pretrained(output)


def _compress(
    model: Any, options: dict[str, Any], settings: Settings, data: Any, trust_remote_code: bool
) -> None:
    """Quantize the weights of `model` in place."""
    import nncf
    from optimum.intel import OVConfig, OVQuantizer

    try:
        config = OVConfig(quantization_config=_config(options, settings))
        OVQuantizer(model, trust_remote_code=trust_remote_code).quantize(data, ov_config=config)
    except (
        ValueError,
        nncf.ValidationError,
        nncf.InvalidGroupSizeError,
        nncf.ParameterNotSupportedError,
    ) as error:
        text = " ".join(str(error).split())
        raise UserError(f"Optimum-Intel or NNCF rejects these settings: {text[:300]}") from error


def _config(options: dict[str, Any], settings: Settings) -> Any:
    from optimum.intel.openvino.configuration import (
        OVMixedQuantizationConfig,
        OVQuantizationConfig,
        OVWeightQuantizationConfig,
        _quantization_config_from_dict,
    )

    if "bits" not in options:  # a recipe of several stages
        return _quantization_config_from_dict(options)
    weights = OVWeightQuantizationConfig(**({"num_samples": settings.samples} | options))
    if settings.activations == "none":
        return weights
    # 0.95 is NNCF's default for transformers; Optimum-Intel takes None for "no smooth quant".
    alpha = 0.95 if settings.smooth_quant_alpha is None else settings.smooth_quant_alpha
    full = OVQuantizationConfig(
        bits=8,
        num_samples=settings.samples,
        smooth_quant_alpha=alpha,
        ignored_scope=options.get("ignored_scope"),
    )
    return full if options["bits"] == 8 else OVMixedQuantizationConfig(weights, full)


def _dataset(model: Any, calibration: Calibration) -> Any:
    import nncf
    import torch

    rows = [
        {
            "input_ids": torch.from_numpy(row.astype(np.int64))[None],
            "attention_mask": torch.ones(1, len(row), dtype=torch.int64),
        }
        for row in calibration.rows
    ]
    if not model.can_generate():  # a classifier, whose inputs are these
        return nncf.Dataset([{key: value.numpy() for key, value in row.items()} for row in rows])
    return nncf.Dataset(rows, lambda row: model.prepare_inputs(**row))
