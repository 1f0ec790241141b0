"""The frozen base in the codes of an OpenVINO IR, about 4.2 bits per weight in groups of 128.

4 bits per weight (8 where the IR has them), a scale and a zero point for each group of a row. Codes
are mapped from the IR's file, so the ranks of a host share them. Each GEMM dequantizes its weight
to `dtype` and frees it afterwards: on AMX into the panels of intel_ft's own GEMMs, elsewhere into a
matrix, as `nf4` does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intel_ft.artifacts.ir_weights import CompressedTensor
from intel_ft.kernels import ops
from intel_ft.kernels.gemm import tiles
from intel_ft.layers.lora_linear import Dense
from intel_ft.layers.own_products import TileWeight
from intel_ft.quantization import base_format


def bytes_per_weight(quantization: Mapping[str, Any]) -> float:
    """Bytes per weight: its code, and for each group a float16 scale and a zero point of one byte.

    quantization: `model.quantization`, whose `ratio` is the share of weights in 4 bits.
    """
    if base_format(dict(quantization)) == "int8":
        return 1.0
    group, ratio = quantization.get("group_size") or 128, quantization.get("ratio") or 1.0
    of_4_bits = (4 + (24 / group if group > 0 else 0)) / 8
    return float(ratio * of_4_bits + (1 - ratio))


def codes_of(
    weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    limits: tuple[int, int],
    rounded: Callable[[Tensor], Tensor] = torch.round,
) -> Tensor:
    """The codes of a weight [out, in]: clamp(round(w / s + z)), float32 [out, groups, group].

    scales, zeros: [out, groups]; limits: the lowest and the highest code; rounded: how to round.
    """
    groups = weight.float().view(*scales.shape, -1) / scales[..., None]
    if zeros is not None:
        groups = groups + zeros[..., None]
    return rounded(groups).clamp(*limits)


@dataclass(frozen=True, eq=False)
class CompressedWeight:
    """A FrozenWeight in the codes of an IR; see CompressedTensor.

    codes: uint8, flat; scales: float16 [out, groups]; zeros: uint8 [out, groups] or None.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    shape: tuple[int, int]
    bits: int
    signed: bool
    bias: Tensor | None
    dtype: torch.dtype

    def weight(self) -> Tensor:
        """The dequantized matrix [out, in], a new tensor."""
        return ops.dequantize(
            self.codes,
            self.scales,
            self.zeros,
            self.shape,
            bits=self.bits,
            signed=self.signed,
            dtype=self.dtype,
        )

    def on_tiles(self) -> TileWeight:
        """The same codes as a weight for intel_ft's own GEMMs in bf16."""
        forward, backward = (
            tiles.CompressedMatrix(
                self.codes,
                self.scales,
                self.zeros,
                self.shape,
                self.bits,
                self.signed,
                transposed=transposed,
            )
            for transposed in (False, True)
        )
        return TileWeight(forward, backward, self.bias)

    def linear(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return Dense(self.weight(), self.bias).linear(x, residual)

    def input_gradient(self, grad: Tensor, accumulate_into: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return Dense(self.weight(), None).input_gradient(grad, accumulate_into)


def compressed_weight(
    tensor: CompressedTensor, bias: Tensor | None, dtype: torch.dtype
) -> CompressedWeight:
    """The weight of an IR as a FrozenWeight that computes in `dtype`."""
    zeros = None if tensor.zeros is None else torch.from_numpy(tensor.zeros)
    return CompressedWeight(
        torch.from_numpy(tensor.codes),
        torch.from_numpy(tensor.scales).to(torch.float16),
        zeros,
        tensor.shape,
        tensor.bits,
        tensor.signed,
        bias,
        dtype,
    )
