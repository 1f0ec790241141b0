"""A distillation's teacher that is an OpenVINO IR.

An IR takes no packed rows: its attention has one mask and no segment bounds. So it reads the
segments of a row one after another, each with an empty cache.
"""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from intel_ft.artifacts.resolve import IR_FILE
from intel_ft.errors import UserError
from intel_ft.models.loss import LazyLogits
from intel_ft.models.model_inputs import ModelInputs
from intel_ft.runtimes.ir_logits import IRLogits


class IRTeacher:
    """The IR in `folder`, compiled for the CPU as it would be served, on as many threads as torch.

    Raises EnvironmentProblem without OpenVINO, UserError if the IR cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        threads = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        try:
            self._ir = IRLogits(folder, threads)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"method.teacher: OpenVINO cannot load {folder / IR_FILE}: {reason}"
            ) from error

    def scores(self, inputs: ModelInputs) -> LazyLogits:
        """The logits at the supervised tokens, float32."""
        tokens: Tensor = inputs.model_kwargs["input_ids"][0].cpu()
        predict = inputs.predict.cpu()
        segments = inputs.model_kwargs.get("cu_seq_lens_q")
        bounds = [0, len(tokens)] if segments is None else segments.tolist()
        values: list[Tensor] = []
        places: list[Tensor] = []
        for start, end in pairwise(bounds):
            inside = ((predict >= start) & (predict < end)).nonzero()[:, 0]
            if len(inside):
                positions = (predict[inside] - start).numpy()
                logits = self._ir.at(tokens[start:end].numpy(), positions)
                values.append(torch.from_numpy(logits))
                places.append(inside)
        order = torch.cat(places).argsort()
        return LazyLogits(torch.cat(values)[order].to(inputs.predict.device), None)
