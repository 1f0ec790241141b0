"""How the frozen base's linear layers keep their weights while an adapter trains; called from
training.setup and insight.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.errors import EnvironmentProblem
from intel_ft.host import cpu
from intel_ft.host.devices import CPU
from intel_ft.models.int8 import can_int8, int8_base
from intel_ft.models.lora_linear import FrozenWeight, LoraFunction, LoraLinear
from intel_ft.models.nf4 import nf4_base
from intel_ft.models.prepacked import can_prepack, prepacked_base


class FrozenLinear(torch.nn.Linear):
    """An `nn.Linear` on `device`, as peft wants it; its `weight` has shape and dtype but no memory,
    what multiplies is `frozen_base`.
    """

    def __init__(self, linear: torch.nn.Linear, base: FrozenWeight, device: torch.device) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=False)
        one = torch.zeros(1, dtype=linear.weight.dtype, device=device)
        shape = one.expand(linear.weight.shape)
        self.weight = torch.nn.Parameter(shape, requires_grad=False)
        self.frozen_base = base

    def forward(self, input: Tensor) -> Tensor:
        """The product without LoRA, [..., in] to [..., out]."""
        linear = LoraLinear(self.frozen_base)
        out: Tensor = LoraFunction.apply(input.to(linear.base.dtype), linear)  # type: ignore[no-untyped-call]
        return out


def convert_frozen_weights(
    model: Any, config: Config, activations: int, sharing: int = 1, device: torch.device = CPU
) -> Decision:
    """Bring the frozen linear layers but the head into the form that the config asks for or, as
    long as there is room, that multiplies fastest; in place, under an adapter or without one. The
    whole model is on `device` then, and never was there in any other form.

    activations: bytes that training needs beside the weights; `sharing` ranks do the same on this
    host. Raises EnvironmentProblem for int8 where the CPU has no instructions for it.
    """
    if config.base_dtype == "int8":
        if not can_int8():
            raise EnvironmentProblem("model.base_dtype=int8: this CPU has neither VNNI nor AMX")
        replace_linears(model, int8_base)
        return Decision("model.base_dtype", "int8", "set in the config")
    if config.base_dtype == "nf4":
        replace_linears(model, nf4_base, device)
        model.to(device)
        asked = "set in the config" if config.model.base_dtype == "nf4" else "method.name is qlora"
        return Decision("model.base_dtype", "nf4", f"{asked}; its constants quantized, too")
    if device.type != "cpu":
        model.to(device)
        return Decision("model.base_dtype", str(model.dtype).removeprefix("torch."), "as loaded")
    if config.method.use_dora:
        return Decision("backend.prepack", "off", "DoRA needs the weights as they are")
    on, reason = _prepack(model, config, activations, sharing)
    if on:
        replace_linears(model, prepacked_base)
    return Decision("backend.prepack", "on" if on else "off", reason)


def _prepack(model: Any, config: Config, activations: int, sharing: int) -> tuple[bool, str]:
    chosen, dtype = config.backend.prepack, model.dtype
    if not can_prepack(dtype):
        if chosen is True:
            raise EnvironmentProblem(f"backend.prepack=true: not for {dtype} on this CPU")
        return False, f"oneDNN has no layout of its own for {dtype} on this CPU"
    if isinstance(chosen, bool):
        return chosen, "set in the config"
    weights = 2 * sum(linear.weight.nbytes for _, _, linear in _linears(model))
    size = f"twice the weights are {weights / cpu.GIB:.1f} GiB"
    if not has_room(weights, activations, cpu.available_bytes() / sharing):
        return False, f"{size}, which with activations is over half of the free memory"
    return True, f"products are faster, {size}, and there is room"


def has_room(weights: int, activations: int, available: float) -> bool:
    """Whether prepacked weights of so many bytes are worth their memory: insight.plan asks, too."""
    return weights + activations <= available / 2


def replace_linears(
    model: Any, kept_as: Callable[[Tensor, Tensor | None], FrozenWeight], device: torch.device = CPU
) -> None:
    """Replace every linear layer but the head, in place, one after another: `kept_as` makes its
    new form from weight [out, in] and bias, which are brought to `device` first.
    """
    linears = _linears(model)
    while linears:
        parent, name, linear = linears.pop()
        bias = None if linear.bias is None else linear.bias.detach().to(device)
        base = kept_as(linear.weight.detach().to(device), bias)
        setattr(parent, name, FrozenLinear(linear, base, device))


def _linears(model: Any) -> list[tuple[Any, str, torch.nn.Linear]]:
    """The frozen linear layers but the head: the module that has it, its name there, the layer."""
    head = model.get_output_embeddings()
    of_head = {id(module) for module in (head.modules() if head is not None else ())}
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
        and not child.weight.requires_grad
        and id(child) not in of_head
    ]
