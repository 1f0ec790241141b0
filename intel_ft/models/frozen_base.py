"""Converts the frozen base's linear layers to the layout that computes their GEMMs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.host.allocator import FreedMemory
from intel_ft.host.devices import CPU
from intel_ft.host.file_pages import FilePages
from intel_ft.kernels.grouped import int8_matrices
from intel_ft.layers.compressed import CompressedWeight
from intel_ft.layers.fused_experts import Factory, Stacked, convert_experts
from intel_ft.layers.int8 import Int8Weight, can_int8
from intel_ft.layers.lora_linear import FrozenWeight, LoraFunction, LoraLinear
from intel_ft.layers.mapped import Keep, private
from intel_ft.layers.mixture import routers
from intel_ft.layers.nf4 import nf4_base
from intel_ft.layers.own_products import TileWeight, VnniWeight
from intel_ft.models.gemm_choice import GemmChoice, choose_gemms
from intel_ft.models.targets import output_layer

Layout = Literal["as loaded", "prepacked", "int8", "nf4", "int4"]
"""How the frozen linear layers keep their weights.

See layers.prepacked, .int8, .nf4, and for int4 .compressed, which models.compressed gives a model
before this. For all but NF4, layers.own_products is chosen where it is faster.
"""


class FrozenLinear(torch.nn.Linear):
    """An `nn.Linear` on `device`, as peft needs it, computed by `frozen_base`.

    Its `weight` has a shape and a dtype but no memory.
    """

    def __init__(self, linear: torch.nn.Linear, base: FrozenWeight, device: torch.device) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=False)
        one = torch.zeros(1, dtype=linear.weight.dtype, device=device)
        shape = one.expand(linear.weight.shape)
        self.weight = torch.nn.Parameter(shape, requires_grad=False)
        self.frozen_base = base

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """The output without LoRA, [..., in] to [..., out]."""
        linear = LoraLinear(self.frozen_base)
        out: Tensor = LoraFunction.apply(input.to(linear.base.dtype), linear)  # type: ignore[no-untyped-call]
        return out


STREAMED = "streamed_gemms"
"""The attribute of a base that was converted while it was loaded: its GemmChoice or None."""


@dataclass(frozen=True, eq=False)
class Conversion:
    """How frozen weights are converted: linear layers, one expert, or all experts of a layer."""

    factory: Factory
    experts: Factory
    stacked: Stacked | None = None
    choice: GemmChoice | None = None


def conversion_to(
    layout: Layout,
    shapes: Mapping[tuple[int, ...], int],
    dtype: torch.dtype,
    device: torch.device = CPU,
    keep: Keep = private,
) -> Conversion:
    """To int8 or NF4; shapes: of the linear layers, with their number; keep: see layers.mapped.

    Raises EnvironmentProblem for int8 on a CPU without the instructions for it.
    """
    if layout == "nf4":
        return Conversion(nf4_base, lambda weight, bias: nf4_base(weight.to(device), bias))
    if not can_int8():
        raise EnvironmentProblem("model.base_dtype=int8: this CPU has neither VNNI nor AMX")
    choice = choose_gemms(shapes, dtype, int8=True, keep=keep)
    return Conversion(choice.factory, choice.factory, int8_matrices, choice)


def convert_frozen_weights(
    model: Any, layout: Layout, device: torch.device = CPU, keep: Keep = private
) -> GemmChoice | None:
    """Convert the frozen linear layers except the head to `layout`, in place, with or without LoRA.

    So are the experts of a mixture, but never prepacked, which would take twice the memory of most
    of the model; routers stay as they are. The whole model is on `device` afterwards, and is never
    there in any other layout. keep: see layers.mapped. Returns whose GEMMs compute them, where
    there is a choice. Nothing is left to do for a base that models.streamed converted. Raises
    EnvironmentProblem for int8 on a CPU without the instructions for it.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, STREAMED):
        streamed: GemmChoice | None = getattr(base, STREAMED)
        return streamed
    choice = None
    shapes = Counter(tuple(linear.weight.shape) for _, _, linear in frozen_linears(model))
    if layout == "prepacked":
        choice = choose_gemms(shapes, model.dtype, int8=False, keep=keep)
        replace_linears(model, choice.factory, keep=keep)
    elif layout in ("int8", "nf4"):
        conversion = conversion_to(layout, shapes, model.dtype, device, keep)
        replace_linears(model, conversion.factory, device, keep)
        convert_experts(model, conversion.experts, conversion.stacked, keep)
        choice = conversion.choice
    elif layout == "int4":
        choice = _choose_for_compressed(model, keep)
    model.to(device)
    return choice


def frozen_dtype(model: Any) -> torch.dtype:
    """The dtype that the frozen GEMMs multiply in: int8, or that of the model."""
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            base = module.frozen_base
            on_tiles = isinstance(base, TileWeight) and base.scales is not None
            is_int8 = on_tiles or isinstance(base, Int8Weight | VnniWeight)
            return torch.int8 if is_int8 else base.dtype
    dtype: torch.dtype = model.dtype
    return dtype


def _choose_for_compressed(model: Any, keep: Keep) -> GemmChoice:
    """Choose the GEMMs of an int4 base, and give its layers the codes in the layout for these.

    They are measured on bf16 weights, to which the codes are dequantized. Raises UserError for a
    model without such codes.
    """
    layers = [
        (module, module.frozen_base)
        for module in model.modules()
        if isinstance(module, FrozenLinear) and isinstance(module.frozen_base, CompressedWeight)
    ]
    if not layers:
        raise UserError(
            "model.base_dtype=int4 needs the weights of an exported base, which only `intel-ft "
            "train` makes: use that command, or set another base_dtype"
        )
    shapes: Counter[tuple[int, ...]] = Counter(codes.shape for _, codes in layers)
    choice = choose_gemms(shapes, model.dtype, int8=False, keep=keep)
    if choice.own:
        for layer, codes in layers:
            layer.frozen_base = codes.on_tiles()
    return choice


def linear_bytes(model: Any) -> int:
    """Bytes of the weights that `convert_frozen_weights` would convert."""
    return sum(linear.weight.nbytes for _, _, linear in frozen_linears(model))


def replace_linears(
    model: Any,
    factory: Factory,
    device: torch.device = CPU,
    keep: Keep = private,
) -> None:
    """Replace every frozen linear layer except the head, in place, one after another.

    Pages of the model's files that were a weight leave this process's memory once it is converted.

    `factory` makes the new form from weight [out, in] and bias, which are on `device` by then;
    keep: see layers.mapped.
    """
    names = {id(module): name for name, module in model.named_modules()}
    linears = frozen_linears(model)
    freed, pages = FreedMemory(), FilePages.read()
    while linears:
        parent, name, linear = linears.pop()
        size = linear.weight.nbytes
        base = keep(names[id(linear)], partial(converted, linear, factory, device))
        setattr(parent, name, FrozenLinear(linear, base, device))
        if linear.weight.device == CPU:
            pages.drop(linear.weight.data_ptr(), size)
        freed.converted(size)


def converted(
    linear: torch.nn.Linear, factory: Factory, device: torch.device = CPU
) -> FrozenWeight:
    """The weight of one linear layer as `factory` makes it."""
    bias = None if linear.bias is None else linear.bias.detach().to(device)
    return factory(linear.weight.detach().to(device), bias)


def frozen_linears(model: Any) -> list[tuple[Any, str, torch.nn.Linear]]:
    """The frozen linear layers except head and routers, with parent module and name there.

    Some models read a router's weight instead of calling it.
    """
    head = output_layer(model)
    others = {id(module) for module in (head.modules() if head is not None else ())}
    others |= {id(module) for module in routers(model).values()}
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
        and not child.weight.requires_grad
        and id(child) not in others
    ]
