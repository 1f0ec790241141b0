"""A distillation's teacher that is an OpenVINO IR; called from models.teacher.

An IR knows no packed rows: its attention has one mask, and no word of where a segment ends. So it
reads a row's segments one after another, each from an empty cache.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intel_ft.errors import UserError
from intel_ft.models.loss import Question, Scores

IR_FILE = "openvino_model.xml"


class IRTeacher:
    """The IR in `folder`, compiled for the CPU with the plugin's defaults, as it would be served,
    on as many threads as torch has.

    Raises EnvironmentProblem without OpenVINO, UserError where the IR cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from intel_ft.inference.extras import require_openvino

        require_openvino("openvino")
        import openvino

        threads = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        try:
            compiled = openvino.Core().compile_model(folder / IR_FILE, "CPU", threads)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"method.teacher: OpenVINO cannot load {folder / IR_FILE}: {said}"
            ) from error
        self._known = {name for port in compiled.inputs for name in port.get_names()}
        self._request: Any = compiled.create_infer_request()

    def scores(self, asked: Question) -> Scores:
        """The logits at the supervised tokens, float32."""
        tokens: Tensor = asked.inputs["input_ids"][0].cpu()
        predict = asked.predict.cpu()
        found = asked.inputs.get("cu_seq_lens_q")
        bounds = [0, len(tokens)] if found is None else found.tolist()
        values: list[Tensor] = []
        places: list[Tensor] = []
        for start, end in pairwise(bounds):
            inside = ((predict >= start) & (predict < end)).nonzero()[:, 0]
            if len(inside):
                logits = self._logits(tokens[start:end])
                values.append(logits[predict[inside] - start])
                places.append(inside)
        order = torch.cat(places).argsort()
        return Scores(torch.cat(values)[order].to(asked.predict.device), None)

    def _logits(self, tokens: Tensor) -> Tensor:
        """Of one segment: [tokens, vocabulary]."""
        length = len(tokens)
        feed = {
            "input_ids": tokens[None].numpy(),
            "attention_mask": torch.ones(1, length, dtype=torch.int64).numpy(),
            "position_ids": torch.arange(length)[None].numpy(),
            "beam_idx": torch.zeros(1, dtype=torch.int32).numpy(),
        }
        self._request.reset_state()
        result = self._request.infer({name: feed[name] for name in feed if name in self._known})
        return torch.from_numpy(result["logits"][0].copy())
