"""The frozen base in int8, which multiplies about twice as fast; called from training.setup and
insight.

Weights have one scale an output channel; activations and gradients are quantized as they come, one
scale a token (SwitchBack, Wortsman et al. 2023; LLM.int8, Dettmers et al. 2022). For the input
gradient the weight's scales move into the gradient before it is quantized. LoRA, norms, attention
and the head stay in bf16.
"""

from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from intel_ft.host import cpu
from intel_ft.kernels import ops


@dataclass(frozen=True, eq=False)
class Packed:
    """An int8 matrix [out, in] in oneDNN's own layout, with float32 scales [out]."""

    values: Tensor
    scales: Tensor
    zeros: Tensor

    def multiply(self, x: tuple[Tensor, Tensor], onto: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x [tokens, in], quantized, times the transposed matrix (+ onto), as `dtype`."""
        values, scales = x
        out = torch.ops.onednn.qlinear_pointwise(
            *(values, 1.0, 128, self.values, self.scales, self.zeros, None),
            *(1.0, 0, dtype, "none", [], ""),
        )
        return ops.scale_rows(out, scales, None if onto is None else onto.contiguous())


def _packed(values: Tensor, scales: Tensor) -> Packed:
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    return Packed(torch.ops.onednn.qlinear_prepack(values, None), scales, zeros)


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A FrozenWeight in int8, packed by oneDNN once for each direction.

    Both copies together are as large as the weight in bf16.
    """

    forward: Packed
    backward: Packed
    scales: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    def product(self, x: Tensor, onto: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        out = self.forward.multiply(_quantized_once(x), onto, self.dtype)
        return out if self.bias is None else out.add_(self.bias)

    def gradient(self, grad: Tensor, onto: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        quantized = ops.quantize(grad.contiguous(), self.scales)
        return self.backward.multiply(quantized, onto, self.dtype)


def int8_base(weight: Tensor, bias: Tensor | None) -> Int8Weight:
    """weight [out, in] rounded to int8, one scale an output channel."""
    unsigned, scales = ops.quantize(weight.contiguous())
    values = (unsigned.to(torch.int16) - 128).to(torch.int8)
    ones = torch.ones(values.shape[1])
    backward = _packed(values.T.contiguous(), ones)
    return Int8Weight(_packed(values, scales), backward, scales, bias, weight.dtype)


def can_int8() -> bool:
    """Whether this CPU has instructions for it: without them oneDNN's product is a slow one."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & cpu.cpu_flags())


_last: tuple[Any, tuple[Tensor, Tensor]] | None = None


def _quantized_once(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in 8 bits; q, k and v multiply the same x one after another, so the last one is kept."""
    global _last  # noqa: PLW0603
    if _last is None or _last[0]() is not x:
        _last = (ref(x), ops.quantize(x.contiguous()))
    return _last[1]
