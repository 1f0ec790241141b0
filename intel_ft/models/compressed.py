"""Give a model the weights of an OpenVINO IR of its base, so that it trains on the served ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from intel_ft.artifacts.ir_weights import CompressedTensor, dequantize
from intel_ft.errors import UserError
from intel_ft.layers.compressed import compressed_weight
from intel_ft.models.frozen_base import FrozenLinear, frozen_linears


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
