"""The frozen base in int8, whose GEMMs are about twice as fast as in bf16.

Weights have one scale per output channel. Activations and gradients are quantized when they are
used, with one scale per token (SwitchBack, Wortsman et al. 2023; LLM.int8, Dettmers et al. 2022).
For the input gradient, the weight's scales multiply the gradient before it is quantized. LoRA,
norms, attention and the head stay in bf16.
"""

from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from intel_ft.host import cpu
from intel_ft.kernels import ops


@dataclass(frozen=True, eq=False)
class Int8Matrix:
    """An int8 matrix [out, in], prepacked by oneDNN, with float32 scales [out]."""

    values: Tensor
    scales: Tensor
    zeros: Tensor

    def linear(
        self, x: tuple[Tensor, Tensor], residual: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """x [tokens, in], quantized, times the transposed matrix (+ residual), as `dtype`."""
        values, scales = x
        out = torch.ops.onednn.qlinear_pointwise(
            qx=values,
            x_scale=1.0,
            x_zero_point=128,
            qw=self.values,
            w_scale=self.scales,
            w_zero_point=self.zeros,
            bias=None,
            output_scale=1.0,
            output_zero_point=0,
            output_dtype=dtype,
            post_op_name="none",
            post_op_args=[],
            post_op_algorithm="",
        )
        return ops.scale_rows(out, scales, None if residual is None else residual.contiguous())


def _prepack(values: Tensor, scales: Tensor) -> Int8Matrix:
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    return Int8Matrix(torch.ops.onednn.qlinear_prepack(values, None), scales, zeros)


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A FrozenWeight in int8, prepacked once for forward and once for backward.

    Both copies together are as large as the weight in bf16.
    """

    forward: Int8Matrix
    backward: Int8Matrix
    scales: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    def linear(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        out = self.forward.linear(_quantize_once(x), residual, self.dtype)
        return out if self.bias is None else out.add_(self.bias)

    def input_gradient(self, grad: Tensor, accumulate_into: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        quantized = ops.quantize(grad.contiguous(), self.scales)
        return self.backward.linear(quantized, accumulate_into, self.dtype)


def int8_values(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [out, in] rounded to int8, and float32 scales, one per output channel."""
    unsigned, scales = ops.quantize(weight.contiguous())
    return (unsigned.to(torch.int16) - 128).to(torch.int8), scales


def int8_base(weight: Tensor, bias: Tensor | None) -> Int8Weight:
    """weight [out, in] rounded to int8, with one scale per output channel."""
    values, scales = int8_values(weight)
    ones = torch.ones(values.shape[1])
    backward = _prepack(values.T.contiguous(), ones)
    return Int8Weight(_prepack(values, scales), backward, scales, bias, weight.dtype)


def can_int8() -> bool:
    """Whether this CPU has int8 instructions, without which oneDNN's GEMM is slow."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & cpu.cpu_flags())


_last: tuple[Any, tuple[Tensor, Tensor]] | None = None


def _quantize_once(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in 8 bits; the last result is cached, as q, k and v take the same x one after another."""
    global _last  # noqa: PLW0603
    if _last is None or _last[0]() is not x:
        _last = (ref(x), ops.quantize(x.contiguous()))
    return _last[1]
