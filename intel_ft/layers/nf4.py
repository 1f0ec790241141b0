"""The frozen base in NF4, which takes a quarter of bf16's memory.

Each weight has four bits, on the quantiles of a normal distribution; 64 weights share a scale, and
the scales have 8 bits (QLoRA, Dettmers et al. 2023). Format and code are bitsandbytes', 4.13 bits
per weight in all. Each GEMM dequantizes the weight to `dtype` and frees it afterwards.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from intel_ft.errors import EnvironmentProblem
from intel_ft.layers.lora_linear import Dense

BLOCK = 64  # weights that share a scale

NF4_BYTES = (4 + 8 / BLOCK + 32 / (BLOCK * 256)) / 8
"""Bytes per weight: four bits, 8 bits for each block's scale, 32 for each 256 of those."""


@dataclass(frozen=True, eq=False)
class NF4Weight:
    """A FrozenWeight in NF4; values: uint8, two weights each; state: bitsandbytes' QuantState."""

    values: Tensor
    state: Any
    shape: torch.Size
    bias: Tensor | None
    dtype: torch.dtype

    def weight(self) -> Tensor:
        """The dequantized matrix [out, in], a new tensor."""
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(self.values, self.state)
        return weight.view(self.shape)

    def linear(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return Dense(self.weight(), self.bias).linear(x, residual)

    def input_gradient(self, grad: Tensor, accumulate_into: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return Dense(self.weight(), None).input_gradient(grad, accumulate_into)


def nf4_base(weight: Tensor, bias: Tensor | None) -> NF4Weight:
    """weight [out, in] rounded to NF4, which may be freed afterwards."""
    from bitsandbytes.functional import quantize_4bit

    rows = weight.contiguous()
    if weight.is_cpu and weight.shape[1] % BLOCK:
        # bitsandbytes 0.50.2: dequantizing on the CPU assumes that each row starts a block, which
        # quantizing does not; such weights come back wrong by a third. One single row avoids it.
        rows = rows.view(1, -1)
    values, state = quantize_4bit(rows, blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
    return NF4Weight(values, state, weight.shape, bias, weight.dtype)


def require_bitsandbytes(what: str, instead: str) -> None:
    """Raise EnvironmentProblem unless bitsandbytes is installed.

    The error says that `what` needs it and that `instead` does not.
    """
    if find_spec("bitsandbytes") is None:
        raise EnvironmentProblem(
            f"{what} needs bitsandbytes: run pip install bitsandbytes, or choose {instead}"
        )
