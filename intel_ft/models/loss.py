"""The training loss of one packed row: logits only where a token is supervised; called from
training and inference.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.batching.row import IGNORED, Row, filled
from intel_ft.models.packed import NAME, ROW_QUANTUM, row_inputs


def loss_sum(model: Any, row: Row, *, packed: bool) -> Tensor:
    """The summed cross-entropy over a row's supervised tokens, a float32 scalar.

    `packed` says that the model was loaded with packed attention; without it the row must hold
    one example. A bf16 base runs under autocast so that the float32 LoRA weights multiply in bf16.
    """
    if packed:
        row = filled(row, ROW_QUANTUM)
    elif len(row.bounds) != 2:
        raise ValueError(f"a model without {NAME} takes one example a row")
    tokens, positions, bounds, predict, targets = (
        torch.from_numpy(array)
        for array in (row.tokens, row.positions, row.bounds, row.predict, row.targets)
    )
    inputs = row_inputs(tokens, positions, bounds)
    if not packed:
        inputs = {"input_ids": inputs["input_ids"], "use_cache": False}
    half = model.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        logits = model(**inputs, logits_to_keep=predict).logits[0]
    return F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED)
