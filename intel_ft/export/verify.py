"""Check a finished IR: its weight types, its logits and its tokenizer."""

import logging
from pathlib import Path
from typing import Any

from intel_ft.artifacts.ir import IRWeights, read_weights
from intel_ft.artifacts.resolve import is_reward_model, resolve
from intel_ft.errors import IntelFTError
from intel_ft.export.logit_agreement import PROBE_TEXTS, probe_logits, probe_sequences
from intel_ft.export.paged_out import paged_out
from intel_ft.quantization import Format
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.openvino_lm import OpenVINOLM, load_openvino
from intel_ft.runtimes.openvino_reward import OpenVINOReward, load_openvino_reward

logger = logging.getLogger(__name__)

_TYPES: dict[Format, tuple[str, ...]] = {
    "fp16": ("f16",),
    "int8": ("i8", "u8"),
    "int4": ("i4", "u4"),
    "nf4": ("nf4",),
    "mxfp4": ("f4e2m1",),
}


def verify(folder: Path, weight_format: Format) -> tuple[IRWeights, bool, Any]:
    """The weights of the IR in `folder`, whether its tokenizer IR agrees, and the loaded model.

    The model is an OpenVINOLM or an OpenVINOReward. It is compiled and run for logits and a few
    tokens, or for scores. Raises IntelFTError if the IR has no weights in `weight_format`, or if a
    logit or a score is not finite.
    """
    weights = read_weights(folder)
    if weights.share(*_TYPES[weight_format]) == 0:
        raise IntelFTError(
            f"the exported IR has no weights in {weight_format}; elements by type: "
            f"{weights.elements}"
        )
    with paged_out(folder):
        model: Any = _run_reward(folder) if is_reward_model(folder) else _run_language_model(folder)
    agrees = _tokenizer_agrees(folder, model.tokenizer)
    if not agrees:
        logger.warning(
            "the tokenizer IR encodes text differently from the Hugging Face tokenizer: text "
            "prompts to OpenVINO GenAI are affected, intel-ft is not"
        )
    return weights, agrees, model


def _run_language_model(folder: Path) -> OpenVINOLM:
    model = load_openvino(resolve(str(folder)))
    # Logits last: they are what is measured next, and a large model keeps one compiled form.
    model.generate(model.tokenizer(PROBE_TEXTS[0])["input_ids"], Sampling(max_new_tokens=4))
    _require_finite(probe_logits(model, probe_sequences(model.tokenizer)))
    return model


def _run_reward(folder: Path) -> OpenVINOReward:
    model = load_openvino_reward(resolve(str(folder)))
    _require_finite([model.score(tokens) for tokens in probe_sequences(model.tokenizer)])
    return model


def _require_finite(values: Any) -> None:
    import numpy as np

    if not np.isfinite(values).all():
        raise IntelFTError(
            "the exported IR computes NaN or infinity: an activation of this model is beyond the "
            "fp16 range (65504)"
        )


def _tokenizer_agrees(folder: Path, tokenizer: Any) -> bool:
    import openvino_genai

    converted = openvino_genai.Tokenizer(str(folder))
    return all(
        converted.encode(text).input_ids.data[0].tolist() == tokenizer(text)["input_ids"]
        for text in (*PROBE_TEXTS, "naïve café 東京 🙂  two spaces\t\n")
    )
