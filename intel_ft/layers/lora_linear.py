"""A frozen linear layer with LoRA: its GEMMs and gradients, written out.

peft computes base(x) + scale * B(A(x)) as separate operations, which cast x to the float32 of the
LoRA weights and back and save several copies of it for backward. Here the low-rank part is added to
the base's output in place, the scale is folded into B, and only x is saved.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor

from intel_ft.kernels import ops
from intel_ft.kernels.gemm import narrow
from intel_ft.kernels.gemm.narrow import LoraPanels
from intel_ft.kernels.gemm.tiles import Activations
from intel_ft.layers.own_products import TileWeight

Gradients = tuple[Tensor, ...]


class FrozenWeight(Protocol):
    """A frozen linear layer [in] -> [out], whatever the layout of its weight.

    A module with another layout than a plain weight has it as its attribute `frozen_base`.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of x, outputs and gradients."""
        ...

    def linear(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """x W^T + bias (+ residual) for x [tokens, in], a new tensor."""
        ...

    def input_gradient(self, grad: Tensor, accumulate_into: Tensor | None) -> Tensor:
        """grad W (+ accumulate_into, which it may overwrite) for grad [tokens, out]."""
        ...


@dataclass(frozen=True, eq=False)
class Dense:
    """A base in the layout that it was loaded in: weight [out, in], bias [out] or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """See FrozenWeight."""
        return self.weight.dtype

    def linear(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """See FrozenWeight."""
        if residual is None:
            return F.linear(x, self.weight, self.bias)
        out = torch.addmm(residual, x, self.weight.T)
        return out if self.bias is None else out.add_(self.bias)

    def input_gradient(self, grad: Tensor, accumulate_into: Tensor | None) -> Tensor:
        """See FrozenWeight."""
        if accumulate_into is None:
            return grad @ self.weight
        return accumulate_into.addmm_(grad, self.weight)


@dataclass(frozen=True, eq=False)
class LoraLinear:
    """x W^T + bias + scale * (dropout(x) A^T) B^T, with the base frozen.

    a [rank, in] and b [out, rank] are float32, or both None where a layer has no LoRA; dropout:
    peft's module, which knows whether it is training, or None.
    """

    base: FrozenWeight
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0
    dropout: torch.nn.Dropout | None = None

    @property
    def trained(self) -> tuple[()] | tuple[Tensor, Tensor]:
        """A and B, or an empty tuple."""
        return () if self.a is None or self.b is None else (self.a, self.b)

    def start_step(self) -> "LoraStep":
        """The layer with its present weights, for one forward and its backward."""
        return start_steps([self])[0]

    @property
    def rate(self) -> float:
        """Dropout's rate, 0 where it is off."""
        return self.dropout.p if self.dropout is not None and self.dropout.training else 0.0

    def torch_step(self) -> "LoraStep":
        """`start_step` where torch computes LoRA's GEMMs."""
        if self.a is None or self.b is None:
            return LoraStep(self.base)
        a, b = self.a.to(self.base.dtype), (self.b * self.scale).to(self.base.dtype)
        seed = int(torch.randint(2**32, ())) if self.rate else 0
        return LoraStep(self.base, a, b, self.scale, self.rate, seed)


@dataclass(frozen=True, eq=False)
class LoraStep:
    """The GEMMs of a `LoraLinear`, with a and b in the base's dtype and the scale folded into b.

    Dropout's rate and seed decide which elements are dropped, so that backward drops the same.
    Where a layer has no LoRA, `lora_a_out` and its gradient are None, and there are no gradients of
    A and B.
    """

    base: FrozenWeight
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0
    rate: float = 0.0
    seed: int = 0

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The output [tokens, out] (+ residual) for x [tokens, in], and `lora_a_out`.

        `lora_a_out` is dropout(x) A^T [tokens, rank], which backward needs.
        """
        if self.a is None or self.b is None:
            return self.base.linear(x, residual), None
        lora_a_out = self._dropout(x) @ self.a.T
        if isinstance(self.base, TileWeight):
            return self.base.linear(x, residual, (lora_a_out, self.b)), lora_a_out
        return self.base.linear(x, residual).addmm_(lora_a_out, self.b.T), lora_a_out

    def lora_a_out_gradient(self, grad: Tensor) -> Tensor | None:
        """The gradient [tokens, rank] of `lora_a_out`, for grad [tokens, out]."""
        return None if self.b is None else grad @ self.b

    def input_gradient(
        self, grad: Tensor, grad_a_out: Tensor | None, accumulate_into: Tensor | None = None
    ) -> Tensor:
        """The gradient [tokens, in] of x (+ accumulate_into, which it may overwrite).

        grad_a_out: what `lora_a_out_gradient` returned.
        """
        if isinstance(self.base, TileWeight) and grad_a_out is not None and not self.rate:
            assert self.a is not None  # as grad_a_out is not
            return self.base.input_gradient(grad, accumulate_into, (grad_a_out, self.a.T))
        grad_x = self.base.input_gradient(grad, accumulate_into)
        if grad_a_out is None or self.a is None:
            return grad_x
        if self.rate:
            return ops.dropout(grad_a_out @ self.a, self.rate, self.seed, accumulate_into=grad_x)
        return grad_x.addmm_(grad_a_out, self.a)

    def input_gradients(
        self, grad: Tensor, accumulate_into: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`input_gradient` and `lora_a_out_gradient` of the same grad."""
        grad_a_out = self.lora_a_out_gradient(grad)
        return self.input_gradient(grad, grad_a_out, accumulate_into), grad_a_out

    def lora_gradients(
        self, grad: Tensor, grad_a_out: Tensor | None, x: Tensor, lora_a_out: Tensor | None
    ) -> Gradients:
        """The gradients of A and B, float32; empty without LoRA."""
        if grad_a_out is None or lora_a_out is None:
            return ()
        grad_a = (grad_a_out.T @ self._dropout(x)).float()
        return grad_a, (grad.T @ lora_a_out).float().mul_(self.scale)

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        lora_a_out: Tensor | None,
        accumulate_into: Tensor | None = None,
    ) -> tuple[Tensor, Gradients]:
        """The gradient of x (+ accumulate_into, which it may overwrite), and those of A and B."""
        grad_x, grad_a_out = self.input_gradients(grad, accumulate_into)
        return grad_x, self.lora_gradients(grad, grad_a_out, x, lora_a_out)

    def _dropout(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.rate, self.seed) if self.rate else x


@dataclass(frozen=True, eq=False)
class TileStep(LoraStep):
    """A `LoraStep` whose GEMMs are all on AMX tiles; `packed` holds a and b. It has no dropout."""

    base: TileWeight
    packed: LoraPanels | None = None

    @property
    def panels(self) -> LoraPanels:
        """`packed`, which start_step set."""
        assert self.packed is not None
        return self.packed

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """See LoraStep."""
        lora_a_out = narrow.multiply(x, self.panels.a)
        return self.base.linear(x, residual, (lora_a_out, self.panels.b)), lora_a_out

    def lora_a_out_gradient(self, grad: Tensor) -> Tensor | None:
        """See LoraStep."""
        return narrow.multiply(grad, self.panels.b_transposed)

    def input_gradient(
        self, grad: Tensor, grad_a_out: Tensor | None, accumulate_into: Tensor | None = None
    ) -> Tensor:
        """See LoraStep."""
        assert grad_a_out is not None
        return self.base.input_gradient(
            grad, accumulate_into, (grad_a_out, self.panels.a_transposed)
        )

    def input_gradients(
        self, grad: Tensor, accumulate_into: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See LoraStep; one pass over grad."""
        rows, [grad_a_out] = self.base.gradient_rows(grad, [self.panels.b_transposed])
        low_rank = grad_a_out, self.panels.a_transposed
        return self.base.multiply_gradient(rows, accumulate_into, low_rank), grad_a_out

    def lora_gradients(
        self, grad: Tensor, grad_a_out: Tensor | None, x: Tensor, lora_a_out: Tensor | None
    ) -> Gradients:
        """See LoraStep."""
        assert grad_a_out is not None and lora_a_out is not None
        of_b = narrow.Gradient(lora_a_out, grad, self.scale, transposed=True)
        return tuple(narrow.gradients([narrow.Gradient(grad_a_out, x), of_b]))


def start_steps(linears: Iterable[LoraLinear]) -> list[LoraStep]:
    """`LoraLinear.start_step` of several layers; those on AMX tiles are packed in one go."""
    steps: list[LoraStep] = []
    pairs: list[tuple[Tensor, Tensor, float]] = []
    for linear in linears:
        if isinstance(linear.base, TileWeight) and (ab := linear.trained) and not linear.rate:
            pairs.append((*ab, linear.scale))
            steps.append(TileStep(linear.base, scale=linear.scale))
        else:
            steps.append(linear.torch_step())
    packed = iter(narrow.pack_loras(pairs) if pairs else ())
    return [replace(s, packed=next(packed)) if isinstance(s, TileStep) else s for s in steps]


def forward_of_shared(
    steps: Sequence[LoraStep], source: Activations, residual: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor | None]]:
    """`LoraStep.forward` of layers that have the same input; the outputs and the `lora_a_outs`.

    On AMX tiles the input is prepared for all of them in one pass.
    """
    if not all(isinstance(step, TileStep) for step in steps):
        x = source.x
        if source.norm is not None:
            x = ops.rms_norm(x, source.norm, source.eps)
        elif source.up is not None:
            x = ops.swiglu(x, source.up)
        found = [step.forward(x, residual) for step in steps]
        return [out for out, _ in found], [lora_a_out for _, lora_a_out in found]
    own = [step for step in steps if isinstance(step, TileStep)]
    rows, lora_a_outs = own[0].base.rows(source, [step.panels.a for step in own])
    outs = [
        step.base.multiply(rows, residual, (lora_a_out, step.panels.b))
        for step, lora_a_out in zip(own, lora_a_outs, strict=True)
    ]
    return outs, list(lora_a_outs)


def backward_of_shared(
    steps: Sequence[LoraStep],
    grads: Sequence[Tensor],
    x: Tensor,
    lora_a_outs: Sequence[Tensor | None],
    *,
    needs_input_gradient: bool = True,
) -> tuple[Tensor | None, list[Gradients]]:
    """`LoraStep.backward` of layers that have the same x, whose gradients are summed up.

    On AMX tiles the gradients of their A are one GEMM, which reads x once. Returns None for the
    gradient of x where that is not needed.
    """
    grad_x: Tensor | None = None
    grad_a_outs: list[Tensor | None] = []
    for step, grad in zip(steps, grads, strict=True):
        if needs_input_gradient:
            grad_x, grad_a_out = step.input_gradients(grad, accumulate_into=grad_x)
        else:
            grad_a_out = step.lora_a_out_gradient(grad)
        grad_a_outs.append(grad_a_out)
    parts = list(zip(steps, grads, grad_a_outs, lora_a_outs, strict=True))
    if not all(isinstance(step, TileStep) for step in steps):
        return grad_x, [s.lora_gradients(g, g_a_out, x, a_out) for s, g, g_a_out, a_out in parts]
    lefts = [grad_a_out for grad_a_out in grad_a_outs if grad_a_out is not None]
    of_bs = [
        narrow.Gradient(o, g, s.scale, transposed=True) for s, g, _, o in parts if o is not None
    ]
    stacked, *grads_of_b = narrow.gradients([narrow.Gradient(torch.cat(lefts, 1), x), *of_bs])
    grads_of_a = torch.split_with_sizes(stacked, [left.shape[1] for left in lefts])
    return grad_x, list(zip(grads_of_a, grads_of_b, strict=True))


class LoraFunction(torch.autograd.Function):
    """A `LoraLinear` as an autograd function, for models whose decoder layers cannot be fused."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: LoraLinear, *_: Tensor) -> Tensor:
        """The output [..., out] for x [..., in]."""
        flat, step = x.reshape(-1, x.shape[-1]).contiguous(), linear.start_step()
        out, lora_a_out = step.forward(flat)
        ctx.step = step
        ctx.save_for_backward(flat, lora_a_out)
        # Not a view: Llama 4 adds its experts to the shared one's output in place.
        return out.view(*x.shape[:-1], -1).data

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, a and b."""
        (flat, lora_a_out), step = ctx.saved_tensors, ctx.step
        grad = gradients[0].reshape(len(flat), -1).contiguous()  # of a sum, it has strides 0
        grad_a_out = step.lora_a_out_gradient(grad)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = step.input_gradient(grad, grad_a_out).view(*gradients[0].shape[:-1], -1)
        return grad_x, None, *step.lora_gradients(grad, grad_a_out, flat, lora_a_out)


def linear_of(module: Any) -> LoraLinear | None:
    """The layer as data, with or without LoRA.

    None for other layers: with DoRA, quantized by a library, or with weights that train.
    """
    if (base := _base_of(module)) is not None:
        return LoraLinear(base)
    if not is_lora_linear(module) or (base := _base_of(module.base_layer)) is None:
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
        a=module.lora_A["default"].weight,
        b=module.lora_B["default"].weight,
        scale=module.scaling["default"],
        dropout=dropout if isinstance(dropout, torch.nn.Dropout) else None,
    )


def is_lora_linear(module: Any) -> bool:
    """Whether peft adapts a linear layer here, as a layer or by the name of its weight."""
    if type(module) is lora.ParamWrapper:
        return module.parameter_name == "weight" and isinstance(module.base_layer, torch.nn.Linear)
    return type(module) is lora.Linear


def is_active(module: Any) -> bool:
    """Whether peft would add the low-rank part now, which is neither disabled nor merged."""
    return not (getattr(module, "disable_adapters", False) or getattr(module, "merged", False))


def _base_of(module: Any) -> FrozenWeight | None:
    if (base := getattr(module, "frozen_base", None)) is not None:
        return base  # type: ignore[no-any-return]
    if type(module) is torch.nn.Linear and not module.weight.requires_grad:
        return Dense(module.weight, module.bias)
    return None


def fuse_linears(model: Any) -> int:
    """Give every plain LoRA layer of a PEFT model the fused forward; returns their number."""
    fused = 0
    for module in model.modules():
        if is_lora_linear(module) and linear_of(module) is not None:
            module.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _forward(self: Any, x: Tensor) -> Tensor:
    out: Tensor
    if not is_active(self):
        out = type(self).forward(self, x)
        return out
    linear = linear_of(self)
    assert linear is not None  # checked when fuse_linears set this forward
    out = LoraFunction.apply(  # type: ignore[no-untyped-call]
        x.to(linear.base.dtype), linear, *linear.trained
    )
    return out
