"""Compute the logits of an OpenVINO IR on this CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intel_ft.artifacts.resolve import IR_FILE
from intel_ft.optional_packages import require_openvino
from intel_ft.runtimes.ir_lora import add_adapter


class IRLogits:
    """The compiled IR in `folder`, with OpenVINO's `properties` and its defaults for the others.

    adapter: a LoRA file whose scaling is folded in, which is added to the IR (runtimes.ir_lora).
    Raises EnvironmentProblem without OpenVINO, RuntimeError where OpenVINO cannot load the IR.
    """

    def __init__(
        self, folder: Path, properties: Mapping[str, str], adapter: Path | None = None
    ) -> None:
        require_openvino("openvino")
        import openvino

        core = openvino.Core()
        model = core.read_model(folder / IR_FILE)
        if adapter is not None:
            add_adapter(model, adapter)
        self.compiled = core.compile_model(model, "CPU", dict(properties))
        self._inputs = {name for port in self.compiled.inputs for name in port.get_names()}
        self._request: Any = self.compiled.create_infer_request()

    def at(
        self, tokens: npt.NDArray[Any], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Logits [positions, vocabulary] of one sequence of `tokens`, from an empty cache."""
        length = len(tokens)
        feed = {
            "input_ids": tokens.astype(np.int64)[None],
            "attention_mask": np.ones((1, length), dtype=np.int64),
            "position_ids": np.arange(length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        self._request.reset_state()
        result = self._request.infer({name: feed[name] for name in feed if name in self._inputs})
        logits: npt.NDArray[np.float32] = result["logits"][0][positions]
        return logits
