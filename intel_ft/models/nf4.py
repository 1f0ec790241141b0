"""The frozen base in NF4, a quarter of bf16's memory; called from models.frozen.

Four bits a weight on the quantiles of a normal distribution, a constant for each 64 weights, and
those constants in 8 bits (QLoRA, Dettmers et al. 2023): bitsandbytes' own format and code, 4.13
bits a weight. For each product the weight becomes `dtype` again and is dropped.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from intel_ft.errors import EnvironmentProblem
from intel_ft.models.lora_linear import Dense

BLOCK = 64  # weights that share a constant

NF4_BYTES = (4 + 8 / BLOCK + 32 / (BLOCK * 256)) / 8
"""Of a weight: four bits, 8 for each block's constant, 32 for each 256 of those."""


@dataclass(frozen=True, eq=False)
class NF4Weight:
    """A FrozenWeight in NF4. values: uint8, two weights each; state: bitsandbytes' QuantState."""

    values: Tensor
    state: Any
    shape: torch.Size
    bias: Tensor | None
    dtype: torch.dtype

    def weight(self) -> Tensor:
        """The matrix [out, in] that the four bits stand for, a new tensor."""
        from bitsandbytes.functional import dequantize_4bit

        found: Tensor = dequantize_4bit(self.values, self.state)
        return found.view(self.shape)

    def product(self, x: Tensor, onto: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return Dense(self.weight(), self.bias).product(x, onto)

    def gradient(self, grad: Tensor, onto: Tensor | None) -> Tensor:
        """See lora_linear.FrozenWeight."""
        return Dense(self.weight(), None).gradient(grad, onto)


def nf4_base(weight: Tensor, bias: Tensor | None) -> NF4Weight:
    """weight [out, in] rounded to NF4, which may be freed afterwards."""
    from bitsandbytes.functional import quantize_4bit

    rows = weight.contiguous()
    if weight.is_cpu and weight.shape[1] % BLOCK:
        # bitsandbytes 0.50.2: the CPU's dequantization takes each row to begin a block, what
        # quantizes does not, and such weights come back wrong by a third. As one row they do not.
        rows = rows.view(1, -1)
    values, state = quantize_4bit(rows, blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
    return NF4Weight(values, state, weight.shape, bias, weight.dtype)


def require_bitsandbytes(what: str, instead: str) -> None:
    """Raise EnvironmentProblem where it is not installed: `what` needs it, `instead` does not."""
    if find_spec("bitsandbytes") is None:
        raise EnvironmentProblem(
            f"{what} needs bitsandbytes: pip install bitsandbytes, or choose {instead}"
        )
