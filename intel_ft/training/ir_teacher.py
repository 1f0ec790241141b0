"""A distillation's teacher that is an OpenVINO IR; called from models.teacher.

An IR knows no packed rows: its attention has one mask, and no word of where a segment ends. So it
reads a row's segments one after another, each from an empty cache.
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from intel_ft.artifacts.resolve import IR_FILE
from intel_ft.errors import UserError
from intel_ft.models.loss import LazyLogits, ModelInputs
from intel_ft.runtimes.ir_logits import IRLogits


class IRTeacher:
    """The IR in `folder`, compiled for the CPU with the plugin's defaults, as it would be served,
    on as many threads as torch has.

    Raises EnvironmentProblem without OpenVINO, UserError where the IR cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        threads = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        try:
            self._ir = IRLogits(folder, threads)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"method.teacher: OpenVINO cannot load {folder / IR_FILE}: {said}"
            ) from error

    def scores(self, inputs: ModelInputs) -> LazyLogits:
        """The logits at the supervised tokens, float32."""
        tokens: Tensor = inputs.model_kwargs["input_ids"][0].cpu()
        predict = inputs.predict.cpu()
        found = inputs.model_kwargs.get("cu_seq_lens_q")
        bounds = [0, len(tokens)] if found is None else found.tolist()
        values: list[Tensor] = []
        places: list[Tensor] = []
        for start, end in pairwise(bounds):
            inside = ((predict >= start) & (predict < end)).nonzero()[:, 0]
            if len(inside):
                asked_at = (predict[inside] - start).numpy()
                found_there = self._ir.at(tokens[start:end].numpy(), asked_at)
                values.append(torch.from_numpy(found_there))
                places.append(inside)
        order = torch.cat(places).argsort()
        return LazyLogits(torch.cat(values)[order].to(inputs.predict.device), None)
