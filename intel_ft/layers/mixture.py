"""The parts of a mixture of experts: the matrices of the experts, and the routers.

Transformers keeps one matrix of all experts of a layer in one parameter of three dimensions, named
in most families `experts.gate_up_proj` and `experts.down_proj`. Files of published models, and
Transformers before version 5, have one matrix per expert, with names such as `experts.0.gate_proj`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_FUSED = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("w2",),)}
"""What published files call the matrices that are one parameter here."""

_ROUTERS = ("gate", "router", "wg")


@dataclass(frozen=True, eq=False)
class ExpertMatrix:
    """One matrix of all experts of one layer: the parameter `parameter` of the module `owner`."""

    owner: str
    module: Any
    parameter: str

    @property
    def path(self) -> str:
        """The parameter's name in the model."""
        return f"{self.owner}.{self.parameter}"

    @property
    def weight(self) -> Tensor:
        """[experts, out, in], or [experts, in, out] where the module has `is_transposed`."""
        weight: Tensor = getattr(self.module, self.parameter)
        return weight

    @property
    def doubled(self) -> bool:
        """Whether it holds two matrices of each expert, those of gate and up."""
        return self.parameter == "gate_up_proj" or self.owner.endswith("input_linear")

    @property
    def block(self) -> str:
        """The name of the layer's module that holds the experts and the router."""
        return self.owner.rpartition(".")[0]

    def names(self) -> tuple[tuple[str, ...], ...]:
        """What `method.target_modules` may call it: any of these groups, whole."""
        if self.parameter == "weight":
            return ((self.owner,),)
        groups = ((self.parameter,), *_FUSED.get(self.parameter, ()))
        return tuple(tuple(f"{self.owner}.{name}" for name in group) for group in groups)


def expert_matrices(model: Any) -> list[ExpertMatrix]:
    """The experts' matrices of a model, with or without an adapter, in the order of its modules.

    Other parameters have three dimensions as well: convolutions, RecurrentGemma's gates.
    """
    return [
        ExpertMatrix(name.replace(".base_layer", ""), module, parameter)
        for name, module in model.named_modules()
        if hasattr(module, "num_experts") or "expert" in name.lower()
        for parameter, weight in module.named_parameters(recurse=False)
        if weight.dim() == 3 and "." in name
    ]


def routers(model: Any) -> dict[str, Any]:
    """The modules that decide which experts a token meets, by name.

    A router is known by its role, one row of weights per expert in the module that holds the
    experts, or by its name. Which class it has, and how it is called (gate, router, router.layer),
    changes with the version of Transformers.
    """
    experts = {matrix.block: matrix.weight.shape[0] for matrix in expert_matrices(model)}
    owners = {matrix.owner for matrix in expert_matrices(model)}
    return {
        name: module
        for block, count in experts.items()
        for name, module in _weights_in(model.get_submodule(block), block)
        if name not in owners and (_has_role(name, module, block, count) or _has_name(name))
    }


def _weights_in(block: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The modules inside `block` that have a matrix `weight` themselves, by their whole name."""
    for inner, module in block.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is not None and weight.dim() == 2 and ".lora_" not in f".{inner}":
            yield f"{name}.{inner}".replace(".base_layer", ""), module


def _has_role(name: str, module: Any, block: str, experts: int) -> bool:
    inner = name.removeprefix(f"{block}.")
    others = any(part in inner for part in ("shared", "proj", "attn"))
    return len(module.weight) == experts and not others


def _has_name(name: str) -> bool:
    *_, parent, leaf = name.split(".")
    return leaf in _ROUTERS or parent in _ROUTERS


@torch.no_grad()
def is_called(model: Any, name: str, module: Any) -> bool:
    """Whether the block of the router `name` calls it, instead of reading its weight.

    An adapter on a weight that is read would have no effect.
    """
    called: list[bool] = []
    handle = module.register_forward_hook(lambda *_: called.append(True))
    block = model.get_submodule(next(m.block for m in expert_matrices(model) if _in(name, m.block)))
    size = module.weight.shape[1]
    try:
        block(torch.ones(1, 2, size, dtype=module.weight.dtype, device=module.weight.device))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        pass  # on the meta device, sorting by expert fails, after the router was called
    finally:
        handle.remove()
    return bool(called)


def _in(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")
