"""A packed row as a model takes it, and the dtype that the model computes in."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intel_ft.batching.row import Row, pad_row
from intel_ft.layers.packed_attention import NAME, padded_length, row_inputs, row_multiple


@dataclass(frozen=True)
class ModelInputs:
    """A row as a model takes it: keyword arguments; predict and targets int64 [supervised].

    weights: for how many examples each target counts, float32 [supervised]; None: for one each.
    """

    model_kwargs: dict[str, Any]
    predict: Tensor
    targets: Tensor
    weights: Tensor | None = None

    def weights_of(self, rows: slice) -> Tensor | None:
        """The weights of these supervised tokens."""
        return None if self.weights is None else self.weights[rows]


def model_inputs(row: Row, model: Any, *, packed: bool) -> ModelInputs:
    """`row` on the model's device, padded for packed attention; bounds and parents stay on the CPU.

    Raises ValueError for several examples where `packed` is false.
    """
    device = model.device
    if packed:
        # fast_path.apply_fast_path sets it where all GEMMs are our own.
        multiple = getattr(model, "row_multiple", None) or row_multiple(device.type)
        row = pad_row(row, *(padded_length(len(x), multiple) for x in (row.tokens, row.targets)))
    elif len(row.bounds) != 2 or row.shared is not None:
        raise ValueError(f"a model without {NAME} takes one example per row")
    tokens, positions, bounds, predict, targets = (
        torch.from_numpy(array)
        for array in (row.tokens, row.positions, row.bounds, row.predict, row.targets)
    )
    tokens, positions, predict, targets = (
        tensor.to(device, non_blocking=True) for tensor in (tokens, positions, predict, targets)
    )
    parents = None if row.shared is None else torch.from_numpy(row.shared.parents)
    inputs = row_inputs(tokens, positions, bounds, parents)
    if not packed:
        inputs = {"input_ids": inputs["input_ids"], "use_cache": False}
    weights = row.weights
    return ModelInputs(
        *(inputs, predict, targets),
        None if weights is None else torch.from_numpy(weights).to(device, non_blocking=True),
    )


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast for bf16 and fp16, nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
