"""An IR folder read back before it gets its name: its types, its logits, its tokenizer; called from
export.openvino.
"""

import logging
from pathlib import Path
from typing import Any

from intel_ft.artifacts.ir import IRWeights, read_weights
from intel_ft.artifacts.resolve import resolve
from intel_ft.errors import IntelFTError
from intel_ft.export.logit_agreement import TEXTS, probe, probe_logits
from intel_ft.export.settings import Format
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.openvino_lm import OpenVINOLM, load_openvino

log = logging.getLogger(__name__)

_TYPES: dict[Format, tuple[str, ...]] = {
    "fp16": ("f16",),
    "int8": ("i8", "u8"),
    "int4": ("i4", "u4"),
    "nf4": ("nf4",),
    "mxfp4": ("f4e2m1",),
}


def verify(folder: Path, format: Format) -> tuple[IRWeights, bool, OpenVINOLM]:
    """What the IR in `folder` holds, whether its tokenizer IR agrees with the tokenizer, and the
    model, loaded.

    It is compiled and asked for logits and a few tokens. Raises IntelFTError where it holds no
    weight of `format`, or where a logit is not finite.
    """
    import numpy as np

    weights = read_weights(folder)
    if weights.share(*_TYPES[format]) == 0:
        raise IntelFTError(
            f"the exported IR holds {weights.elements} weight elements by type, nothing in {format}"
        )
    model = load_openvino(resolve(str(folder)))
    if not np.isfinite(probe_logits(model, probe(model.tokenizer))).all():
        raise IntelFTError(
            "the exported IR computes NaN or infinity: an activation of this model is beyond what "
            "fp16 holds (65504)"
        )
    model.generate(model.tokenizer(TEXTS[0])["input_ids"], Sampling(max_new_tokens=4))
    agrees = _tokenizer_agrees(folder, model.tokenizer)
    if not agrees:
        log.warning(
            "the tokenizer IR gives other ids than the Hugging Face tokenizer: prompts given to "
            "OpenVINO GenAI as text will differ; intel-ft itself is not affected"
        )
    return weights, agrees, model


def _tokenizer_agrees(folder: Path, tokenizer: Any) -> bool:
    import openvino_genai

    converted = openvino_genai.Tokenizer(str(folder))
    return all(
        converted.encode(text).input_ids.data[0].tolist() == tokenizer(text)["input_ids"]
        for text in (*TEXTS, "naïve café 東京 🙂  two spaces\t\n")
    )
