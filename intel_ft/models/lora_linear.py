"""A frozen linear layer with LoRA: its products and gradients by hand; called from models.fused and
models.adapter.

peft computes base(x) + scale * B(A(x)) as separate operations, which casts x to the float32 of the
LoRA weights and back, and keeps several copies of it for backward. Here the low-rank part is added
onto the base product in place, its scale folded into B, and only x is kept.
"""

from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor

from intel_ft.kernels import ops

Gradients = tuple[Tensor, ...]


class FrozenWeight(Protocol):
    """A frozen linear layer [in] -> [out], in whatever form its weight is kept.

    A module that keeps it in a form of its own offers it as `frozen_base`.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of x, outputs and gradients."""
        ...

    def product(self, x: Tensor, onto: Tensor | None) -> Tensor:
        """x W^T + bias (+ onto) for x [tokens, in], a new tensor."""
        ...

    def gradient(self, grad: Tensor, onto: Tensor | None) -> Tensor:
        """grad W (+ onto) for grad [tokens, out]; may write to `onto`."""
        ...


@dataclass(frozen=True, eq=False)
class Dense:
    """A base kept as it was loaded: weight [out, in], bias [out] or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """See FrozenWeight."""
        return self.weight.dtype

    def product(self, x: Tensor, onto: Tensor | None) -> Tensor:
        """See FrozenWeight."""
        if onto is None:
            return F.linear(x, self.weight, self.bias)
        out = torch.addmm(onto, x, self.weight.T)
        return out if self.bias is None else out.add_(self.bias)

    def gradient(self, grad: Tensor, onto: Tensor | None) -> Tensor:
        """See FrozenWeight."""
        return grad @ self.weight if onto is None else onto.addmm_(grad, self.weight)


@dataclass(frozen=True, eq=False)
class LoraLinear:
    """x W^T + bias + scale * (dropout(x) A^T) B^T, with the base frozen.

    a [rank, in] and b [out, rank] are float32, or both None where a layer has no LoRA; dropout:
    peft's, which knows whether it is on, or None.
    """

    base: FrozenWeight
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0
    dropout: torch.nn.Dropout | None = None

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """A and B, or nothing."""
        return () if self.a is None or self.b is None else (self.a, self.b)

    def ready(self) -> "LoraStep":
        """Its weights as they are now, for one forward and backward."""
        if self.a is None or self.b is None:
            return LoraStep(self.base)
        dtype = self.base.dtype
        weights = self.a.to(dtype), (self.b * self.scale).to(dtype)
        if self.dropout is None or not self.dropout.training:
            return LoraStep(self.base, *weights, self.scale)
        seed = int(torch.randint(2**32, ()))
        return LoraStep(self.base, *weights, self.scale, self.dropout.p, seed)


@dataclass(frozen=True, eq=False)
class LoraStep:
    """The products of a `LoraLinear`: a and b in the base's dtype, the scale folded into b; which
    elements are dropped follows from rate and seed, so that backward drops them again.

    Where a layer has no LoRA, its low-rank parts are None and its gradients are nothing.
    """

    base: FrozenWeight
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0
    rate: float = 0.0
    seed: int = 0

    def forward(self, x: Tensor, onto: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The output [tokens, out] for x [tokens, in], plus `onto` where that is given; and
        dropout(x) A^T [tokens, rank].
        """
        out = self.base.product(x, onto)
        if self.a is None or self.b is None:
            return out, None
        low = self._dropped(x) @ self.a.T
        return out.addmm_(low, self.b.T), low

    def backward_input(self, grad: Tensor) -> Tensor | None:
        """The gradient [tokens, rank] of dropout(x) A^T, for grad [tokens, out]."""
        return None if self.b is None else grad @ self.b

    def input_gradient(
        self, grad: Tensor, grad_b: Tensor | None, onto: Tensor | None = None
    ) -> Tensor:
        """The gradient [tokens, in] of x, added onto `onto` in place."""
        grad_x = self.base.gradient(grad, onto)
        if grad_b is None or self.a is None:
            return grad_x
        if self.rate:
            return ops.dropout(grad_b @ self.a, self.rate, self.seed, onto=grad_x)
        return grad_x.addmm_(grad_b, self.a)

    def lora_gradients(
        self, grad: Tensor, grad_b: Tensor | None, x: Tensor, low: Tensor | None
    ) -> Gradients:
        """The gradients of A and B, float32."""
        if grad_b is None or low is None:
            return ()
        return (grad_b.T @ self._dropped(x)).float(), (grad.T @ low).float().mul_(self.scale)

    def backward(
        self, grad: Tensor, x: Tensor, low: Tensor | None, onto: Tensor | None = None
    ) -> tuple[Tensor, Gradients]:
        """The gradients of x, added onto `onto` in place, and of A and B."""
        grad_b = self.backward_input(grad)
        grad_x = self.input_gradient(grad, grad_b, onto)
        return grad_x, self.lora_gradients(grad, grad_b, x, low)

    def _dropped(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.rate, self.seed) if self.rate else x


class LoraFunction(torch.autograd.Function):
    """A `LoraLinear` where only single layers can be replaced."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: LoraLinear, *_: Tensor) -> Tensor:
        """The output [..., out] for x [..., in]."""
        flat, step = x.reshape(-1, x.shape[-1]).contiguous(), linear.ready()
        out, low = step.forward(flat)
        ctx.step = step
        ctx.save_for_backward(flat, low)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, a and b."""
        (flat, low), step = ctx.saved_tensors, ctx.step
        grad = gradients[0].reshape(len(flat), -1).contiguous()  # that of a sum is one number
        grad_b = step.backward_input(grad)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = step.input_gradient(grad, grad_b).view(*gradients[0].shape[:-1], -1)
        return grad_x, None, *step.lora_gradients(grad, grad_b, flat, low)


def linear_of(module: Any) -> LoraLinear | None:
    """The layer as data, with or without LoRA, or None where it is not a plain one (DoRA, quantized
    by a library, trained weights).
    """
    if (base := _base_of(module)) is not None:
        return LoraLinear(base)
    if type(module) is not lora.Linear or (base := _base_of(module.base_layer)) is None:
        return None
    dropout = module.lora_dropout["default"]
    if (
        not isinstance(dropout, torch.nn.Identity | torch.nn.Dropout)
        or module.use_dora["default"]
        or module.lora_bias["default"]
    ):
        return None
    return LoraLinear(
        base,
        module.lora_A["default"].weight,
        module.lora_B["default"].weight,
        module.scaling["default"],
        dropout if isinstance(dropout, torch.nn.Dropout) else None,
    )


def is_active(module: Any) -> bool:
    """Whether peft would add the low-rank part now: it does not if that is disabled or merged."""
    return not (getattr(module, "disable_adapters", False) or getattr(module, "merged", False))


def _base_of(module: Any) -> FrozenWeight | None:
    if (base := getattr(module, "frozen_base", None)) is not None:
        return base  # type: ignore[no-any-return]
    if type(module) is torch.nn.Linear and not module.weight.requires_grad:
        return Dense(module.weight, module.bias)
    return None


def fuse_linears(model: Any) -> int:
    """Give every plain LoRA layer of a PEFT model the fused forward; returns how many it was."""
    fused = 0
    for module in model.modules():
        if type(module) is lora.Linear and linear_of(module) is not None:
            module.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _forward(self: Any, x: Tensor) -> Tensor:
    if not is_active(self):
        own: Tensor = lora.Linear.forward(self, x)
        return own
    linear = linear_of(self)
    assert linear is not None  # checked when this forward was put in
    out: Tensor = LoraFunction.apply(  # type: ignore[no-untyped-call]
        x.to(linear.base.dtype), linear, *linear.trained
    )
    return out
