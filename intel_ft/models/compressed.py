"""The frozen base in the codes of an OpenVINO IR: training computes with the weights served.

4 bits per weight (8 where the IR has them), a scale and a zero point for each group of a row, about
4.2 bits per weight for groups of 128. Codes are mapped from the IR's file, so the ranks of a host
share them. Each GEMM dequantizes its weight to `dtype` and frees it afterwards, as `nf4` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intel_ft.artifacts.ir_weights import CompressedTensor, dequantize
from intel_ft.errors import UserError
from intel_ft.kernels import ops
from intel_ft.layers.lora_linear import Dense
from intel_ft.models.frozen_base import FrozenLinear, frozen_linears

INT4_BYTES = (4 + (16 + 8) / 128) / 8
"""Bytes per weight of 4 bits in groups of 128: a float16 scale and a zero point of a byte each."""


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


def use_compressed(model: Any, weights: Mapping[str, CompressedTensor]) -> None:
    """Give a model, with or without LoRA, the weights of an IR of its base, in place.

    Linear layers keep the codes. Embeddings and head, whose rows are looked up or whose logits
    other code computes, get the dequantized values in the model's dtype. What the IR did not
    compress stays as loaded, which is what the IR has. Raises UserError where a weight of the IR
    belongs to no layer of the model.
    """
    left = dict(weights)
    names = {id(module): _base_name(name) for name, module in model.named_modules()}
    for parent, child, linear in frozen_linears(model):
        tensor = left.pop(names[id(linear)], None)
        if tensor is None:
            continue
        _require_shape(names[id(linear)], tensor, linear.weight)
        bias = None if linear.bias is None else linear.bias.detach()
        base = compressed_weight(tensor, bias, linear.weight.dtype)
        setattr(parent, child, FrozenLinear(linear, base, linear.weight.device))
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        tensor = None if module is None else left.pop(names[id(module)], None)
        if tensor is not None:
            _require_shape(names[id(module)], tensor, module.weight)
            # Not in place: the weight is mapped from the file. Tied embeddings share a Parameter.
            module.weight.data = torch.from_numpy(dequantize(tensor)).to(module.weight.dtype)
    if left:
        raise UserError(
            f"model.base_dtype=int4: {next(iter(left))} is compressed in the IR, but not a linear "
            "layer of this model in torch: use model.base_dtype=nf4"
        )


def _base_name(name: str) -> str:
    """A module's name in the model without LoRA."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def _require_shape(name: str, tensor: CompressedTensor, weight: Tensor) -> None:
    if tensor.shape != tuple(weight.shape):
        raise UserError(
            f"model.base_dtype=int4: {name} is {list(tensor.shape)} in the IR and "
            f"{list(weight.shape)} in the model: they are not the same model"
        )
