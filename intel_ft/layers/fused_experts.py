"""Replaces the experts of a model by `layers.experts`, after a trial of each layer both ways.

Transformers computes a layer's experts in one module (`mlp.experts`, with the matrices as
parameters), Granite MoE in two (`input_linear` and `output_linear`, which get sorted rows). peft
wraps such a module once for each parameter that it adapts (ParamWrapper), and would add the whole
delta of all experts to the weights in every forward.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper
from torch import Tensor

from intel_ft.decisions import Decision
from intel_ft.kernels.grouped import Int8Experts
from intel_ft.layers.experts import (
    Activation,
    ExpertLinear,
    Experts,
    ExpertsFunction,
    ModelActivation,
    SortedLinear,
    SwiGLU,
)
from intel_ft.layers.grouped_experts import GroupedExperts, can_compute
from intel_ft.layers.lora_linear import Dense, FrozenWeight, is_active
from intel_ft.layers.mapped import Keep, private
from intel_ft.layers.mixture import expert_matrices

Factory = Callable[[Tensor, Tensor | None], FrozenWeight]
"""Makes a layout of a frozen weight [out, in] without its bias, which is given as None."""

Stacked = Callable[[Tensor], Int8Experts | None]
"""Makes one of the matrices [experts, out, in] of all experts, or None where it cannot."""

_BASES = "frozen_experts"
"""The attribute of a converted module: what its matrices became, by parameter."""

_TRIAL_TOKENS = 12


@dataclass(frozen=True, eq=False)
class ExpertModule:
    """A module whose parameters are the matrices of all experts of a layer.

    outer: what the model calls, the module or peft's outermost wrapper; module: the model's own;
    wrappers: peft's, by the parameter that each adapts.
    """

    name: str
    outer: Any
    module: Any
    wrappers: dict[str, Any]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its matrices: one for sorted rows, else the first and the second one."""
        if not hasattr(self.module, "has_gate"):
            return ("weight",)
        return ("gate_up_proj" if self.module.has_gate else "up_proj", "down_proj")

    @property
    def routes(self) -> bool:
        """Whether it gets tokens with their experts, and not rows sorted by expert."""
        return len(self.parameters) == 2

    def linear(self, parameter: str) -> ExpertLinear:
        """One of its matrices as data."""
        bias = getattr(self.module, f"{parameter}_bias", None)
        wrapper = self.wrappers.get(parameter)
        weight: Tensor | Int8Experts | None = None
        bases: Sequence[FrozenWeight] = ()
        converted = getattr(self.module, _BASES, {}).get(parameter)
        if isinstance(converted, Int8Experts):
            weight = converted
        elif converted is not None:
            bases = converted
        else:
            weight = _stacked(self.module, parameter)
            bases = [Dense(matrix, None) for matrix in weight.unbind()]
        if wrapper is None:
            return ExpertLinear(bases, weight, bias)
        return ExpertLinear(
            bases,
            weight,
            bias,
            a=wrapper.lora_A["default"].weight,
            b=wrapper.lora_B["default"].weight,
            scale=wrapper.scaling["default"],
        )

    def experts(self) -> Experts:
        """Its two matrices and what comes between them."""
        first, second = (self.linear(parameter) for parameter in self.parameters)
        return Experts(first, second, _activation(self.module))

    def is_active(self) -> bool:
        """Whether peft would add the low-rank parts now."""
        return all(is_active(wrapper) for wrapper in self.wrappers.values())


def expert_modules(model: Any, *, trained: bool = False) -> Iterator[ExpertModule]:
    """The modules of a model, with or without an adapter, that `layers.experts` can compute.

    trained: those whose own weights train as well, which it cannot.
    """
    inner: set[int] = set()
    for name, outer in model.named_modules():
        if id(outer) in inner:
            continue
        module, wrappers = outer, {}
        while isinstance(module, ParamWrapper):
            wrappers[module.parameter_name] = module
            module = module.base_layer
            inner.add(id(module))
        own = module.parameters(recurse=False)
        if has_experts(module) and (trained or not any(weight.requires_grad for weight in own)):
            yield ExpertModule(name, outer, module, wrappers)


def has_experts(module: Any) -> bool:
    """Whether a module has the structure of experts that `layers.experts` computes."""
    weights = dict(module.named_parameters(recurse=False))
    matrices = {name for name, weight in weights.items() if weight.dim() == 3}
    if matrices == {"weight"} and hasattr(module, "num_experts"):  # Granite MoE
        return "bias" not in weights
    if not hasattr(module, "has_gate") or not hasattr(module, "_apply_gate"):
        return False
    return matrices == {"gate_up_proj" if module.has_gate else "up_proj", "down_proj"}


def fuse_experts(model: Any) -> Decision | None:
    """Give the experts of a model the fused forward, layer by layer; None without a mixture."""
    found = list(expert_modules(model))
    others = len(expert_matrices(model)) - sum(len(part.parameters) for part in found)
    reasons: dict[str, int] = {}
    for part in found:
        if hasattr(part.module, _BASES) or (why_not := why_not_equal(part)) is None:
            forward = _forward if part.routes else _sorted_forward
            part.outer.forward = MethodType(forward(part), part.outer)
        else:
            reasons[why_not] = reasons.get(why_not, 0) + 1
    if others:
        reasons["they are not one of Transformers' implementations"] = others
    if not found and not others:
        return None
    if reasons:
        text = "; ".join(f"{why_not} ({count})" for why_not, count in reasons.items())
        return Decision("experts", "the model's own code in some layers", text)
    return Decision("experts", "sorted", "checked: each layer's output and gradient stay the same")


def convert_experts(
    model: Any, factory: Factory, stacked: Stacked | None = None, keep: Keep = private
) -> None:
    """Convert the experts' frozen weights by `factory`, one after another, in place.

    stacked: tried first, for the modules that sort their rows themselves; keep: see
    layers.mapped.

    Layers that fail the trial keep their weights. Of a converted parameter only shape and dtype
    remain, without memory.
    """
    for part in list(expert_modules(model)):
        convert_module(part, factory, stacked, keep)


def convert_module(
    part: ExpertModule, factory: Factory, stacked: Stacked | None, keep: Keep = private
) -> None:
    """Convert one layer's experts as `convert_experts` does."""
    if hasattr(part.module, _BASES) or why_not_equal(part) is not None:
        return
    bases: dict[str, Sequence[FrozenWeight] | Int8Experts] = {}
    for parameter in part.parameters:
        weight, matrices = getattr(part.module, parameter), _stacked(part.module, parameter)
        make = partial(_converted, matrices, factory, stacked if part.routes else None)
        bases[parameter] = keep(f"{part.name}.{parameter}", make)
        weight.data = torch.zeros(1, dtype=weight.dtype).expand(weight.shape)
    setattr(part.module, _BASES, bases)


def _converted(
    matrices: Tensor, factory: Factory, stacked: Stacked | None
) -> Sequence[FrozenWeight] | Int8Experts:
    whole = None if stacked is None else stacked(matrices)
    return whole or [factory(matrix.contiguous(), None) for matrix in matrices.unbind()]


def _stacked(module: Any, parameter: str) -> Tensor:
    """The matrices [experts, out, in], a view of the parameter."""
    weight: Tensor = getattr(module, parameter).detach()
    return weight.mT if getattr(module, "is_transposed", False) else weight


def _activation(module: Any) -> Activation:
    if not module.has_gate:
        return ModelActivation(module.act_fn)
    default = type(module)._apply_gate.__name__ == "_default_apply_gate"
    if default and "silu" in type(module.act_fn).__name__.lower():
        return SwiGLU()
    return ModelActivation(module._apply_gate)


def _forward(part: ExpertModule) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        experts = part.experts()
        if not part.is_active():
            experts = experts.without_lora()
        dtype = experts.first.dtype
        flat = hidden_states.reshape(-1, hidden_states.shape[-1]).to(dtype).contiguous()
        function = GroupedExperts if can_compute(experts) else ExpertsFunction
        out = function.apply(flat, index, weights, experts, *experts.trained)  # type: ignore[no-untyped-call]
        return out.view(hidden_states.shape).to(hidden_states.dtype)  # type: ignore[no-any-return]

    return forward


def _sorted_forward(part: ExpertModule) -> Callable[..., Tensor]:
    def forward(self: Any, inputs: Tensor, expert_size: list[int]) -> Tensor:
        linear = part.linear("weight")
        if not part.is_active():
            linear = linear.without_lora()
        x, bounds = inputs.to(linear.dtype), [0, *accumulate(expert_size)]
        out: Tensor = SortedLinear.apply(x, bounds, linear, *linear.trained)  # type: ignore[no-untyped-call]
        return out

    return forward


def why_not_equal(part: ExpertModule) -> str | None:
    """Run a module both ways on random input, without LoRA: None if they agree to rounding."""
    try:
        expected, found = _trial(part)
    except (TypeError, AttributeError, RuntimeError, ValueError, IndexError) as error:
        return f"a trial of one layer failed ({str(error).splitlines()[0]})"
    for one, other in zip(expected, found, strict=True):
        if not (one - other).float().norm() <= 0.05 * one.float().norm():  # or it is NaN
            return "a trial of one layer gave a different result"
    return None


def _trial(part: ExpertModule) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of the model's own code, and of the fused forward."""
    first = _stacked(part.module, part.parameters[0])
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator)
        return values.to(first[0]).requires_grad_(True)

    count, tokens = len(first), _TRIAL_TOKENS
    x = random(tokens, first[0].shape[1])
    bare, leaves = ExpertModule(part.name, part.module, part.module, {}), [x]
    arguments: tuple[Any, ...]
    if not part.routes:
        sizes = [tokens // 2, tokens - tokens // 2, *[0] * count][:count]
        sizes[0] += tokens - sum(sizes)
        arguments, forward = (x, sizes), _sorted_forward(bare)
    else:
        ranks = torch.rand(tokens, count, generator=generator).argsort(dim=1)
        index = ranks[:, : min(2, count)].to(x.device)
        leaves.append(random(*index.shape))
        arguments, forward = (x, index, leaves[-1]), _forward(bare)
    results, grad = [], random(tokens, len(_stacked(part.module, part.parameters[-1])[0]))
    for compute in (type(part.module).forward, forward):
        with torch.enable_grad():
            out = compute(part.module, *arguments)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    return results[0], results[1]
