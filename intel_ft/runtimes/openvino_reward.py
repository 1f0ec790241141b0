"""Run the OpenVINO IR of a reward model on this CPU."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.resolve import IR_FILE, Artifact
from intel_ft.optional_packages import require_openvino
from intel_ft.runtimes.language_model import tokenizer_config
from intel_ft.runtimes.openvino_lm import opened, type_name


def load_openvino_reward(artifact: Artifact) -> "OpenVINOReward":
    """The IR in `artifact`'s folder, with the Hugging Face tokenizer in that folder."""
    from intel_ft.models.tokenizer import load_tokenizer

    return OpenVINOReward(artifact.folder, load_tokenizer(tokenizer_config(artifact)))


class OpenVINOReward:
    """A `RewardModel` on an IR folder, compiled on first use, with the plugin's defaults.

    properties, and what it raises: as for `OpenVINOLM`.
    """

    def __init__(
        self, folder: Path, tokenizer: Any, properties: dict[str, str] | None = None
    ) -> None:
        require_openvino("openvino")
        self.tokenizer = tokenizer
        self._folder = folder
        self._properties = properties or {}

    @cached_property
    def _compiled(self) -> Any:
        import openvino

        file = self._folder / IR_FILE
        return opened(file, lambda: openvino.compile_model(file, "CPU", dict(self._properties)))

    def precisions(self) -> dict[str, str | None]:
        """The precision of inference, as the plugin reports it; there is no KV cache."""
        inference = type_name(self._compiled, "INFERENCE_PRECISION_HINT")
        return {"inference_precision": inference, "kv_cache_precision": None}

    def score(self, tokens: npt.NDArray[np.int32]) -> float:
        """See `RewardModel.score`."""
        ids = tokens.astype(np.int64)[None]
        result = self._compiled({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        return float(result["logits"][0, 0])
