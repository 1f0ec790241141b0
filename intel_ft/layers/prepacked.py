"""Frozen bf16 weights prepacked by oneDNN, once for forward and once for backward.

A plain GEMM reorders its weight at every call. The two prepacked copies take twice the memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 2048
"""The number of tokens that the layouts are chosen for; they work for any number."""

WIDEST = 6144
"""The most outputs of one GEMM. With AMX, wider ones ran at half the rate (docs/log.md)."""


@dataclass(frozen=True, eq=False)
class PrepackedMatrix:
    """A matrix [out, in], prepacked in parts of `part` outputs each."""

    parts: tuple[Tensor, ...]
    part: int
    out: int

    def linear(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """x [tokens, in] times the transposed matrix (+ bias) (+ residual), a new tensor."""
        if len(self.parts) == 1:
            return _linear(x, self.parts[0], bias, residual)
        out = x.new_empty(len(x), self.out)
        for index, weight in enumerate(self.parts):
            columns = slice(index * self.part, (index + 1) * self.part)
            out[:, columns] = _linear(
                x,
                weight,
                bias=None if bias is None else bias[columns],
                residual=None if residual is None else residual[:, columns].contiguous(),
            )
        return out


@dataclass(frozen=True, eq=False)
class PrepackedWeight:
    """See lora_linear.FrozenWeight."""

    forward: PrepackedMatrix
    backward: PrepackedMatrix
    bias: Tensor | None
    dtype: torch.dtype

    def linear(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return self.forward.linear(x, self.bias, residual)

    def input_gradient(self, grad: Tensor, accumulate_into: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return self.backward.linear(grad, bias=None, residual=accumulate_into)


def can_prepack(dtype: torch.dtype) -> bool:
    """Whether oneDNN has GEMMs and prepacked layouts for this dtype on this CPU."""
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def prepacked_base(weight: Tensor, bias: Tensor | None) -> PrepackedWeight:
    """weight [out, in], which may be freed afterwards."""
    forward, backward = prepack(weight, WIDEST), prepack(weight.T, WIDEST)
    return PrepackedWeight(forward, backward, bias, weight.dtype)


def prepack(matrix: Tensor, widest: int, tokens: int = ROWS) -> PrepackedMatrix:
    """Prepack a bf16 matrix [out, in] in parts of at most `widest` outputs; `tokens`: see ROWS.

    The matrix may be freed afterwards.
    """
    out = len(matrix)
    part = -(-out // -(-out // widest))  # the fewest parts, of about equal size
    part = -(-part // 64) * 64  # rounded up to whole blocks of oneDNN's kernel
    reorder = torch.ops.mkldnn._reorder_linear_weight
    parts = tuple(reorder(rows.contiguous(), tokens) for rows in torch.split(matrix, part))
    return PrepackedMatrix(parts, part, out)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if residual is None:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    else:
        out = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
    return out
