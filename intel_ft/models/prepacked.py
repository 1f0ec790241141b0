"""Frozen bf16 weights that oneDNN laid out beforehand, once for each direction; called from
models.frozen.

A plain product lays its weight out anew each time. Together the two layouts take twice the memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 2048
"""The number of tokens that the layouts are chosen for; others work."""

WIDEST = 6144
"""Outputs of one product. With AMX, wider ones ran at half the rate (docs/log.md)."""


@dataclass(frozen=True, eq=False)
class Prepacked:
    """A frozen matrix [out, in] as oneDNN's layouts of equal parts of its rows."""

    parts: tuple[Tensor, ...]
    part: int
    out: int

    def multiply(self, x: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
        """x [tokens, in] times the transposed matrix (+ bias) (+ onto), a new tensor."""
        if len(self.parts) == 1:
            return _product(x, self.parts[0], bias, onto)
        out = x.new_empty(len(x), self.out)
        for index, weight in enumerate(self.parts):
            columns = slice(index * self.part, (index + 1) * self.part)
            own_bias = None if bias is None else bias[columns]
            own_onto = None if onto is None else onto[:, columns].contiguous()
            out[:, columns] = _product(x, weight, own_bias, own_onto)
        return out


@dataclass(frozen=True, eq=False)
class PrepackedWeight:
    """See lora_linear.FrozenWeight."""

    forward: Prepacked
    backward: Prepacked
    bias: Tensor | None
    dtype: torch.dtype

    def product(self, x: Tensor, onto: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return self.forward.multiply(x, self.bias, onto)

    def gradient(self, grad: Tensor, onto: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return self.backward.multiply(grad, None, onto)


def can_prepack(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this dtype here, and torch offers its layouts."""
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def prepacked_base(weight: Tensor, bias: Tensor | None) -> PrepackedWeight:
    """weight [out, in], which may be freed afterwards."""
    forward, backward = laid_out(weight, WIDEST), laid_out(weight.T, WIDEST)
    return PrepackedWeight(forward, backward, bias, weight.dtype)


def laid_out(matrix: Tensor, widest: int, tokens: int = ROWS) -> Prepacked:
    """A bf16 matrix [out, in], which may be freed afterwards, in parts of at most `widest` outputs;
    `tokens`: see ROWS.
    """
    out = len(matrix)
    part = -(-out // -(-out // widest))  # as few parts as allowed, as equal as
    part = -(-part // 64) * 64  # whole blocks of the kernel make them
    reorder = torch.ops.mkldnn._reorder_linear_weight
    parts = tuple(reorder(rows.contiguous(), tokens) for rows in torch.split(matrix, part))
    return Prepacked(parts, part, out)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, onto: Tensor | None) -> Tensor:
    if onto is None:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    else:
        out = torch.ops.mkldnn._linear_pointwise.binary(x, onto, weight, bias, "add")
    return out
