"""The experts of a mixture with all rows of a layer in one product, for weights in bf16 or int8.

The same computation as in layers.experts, which explains it, but each product runs over the rows of
all experts at once (kernels.grouped): a few calls per layer instead of some thirty per expert.

    rows = x[tokens]                                [rows, h]
    a1 = rows A1^T                                  [rows, r]
    hidden = rows W1^T + a1 B1^T                    [rows, 2 i]
    a2 = activated A2^T
    out[tokens] += w * (activated W2^T + a2 B2^T)   [T, h]

Saved for backward are x, hidden, a1 and a2. Backward, for the rows g of the output's gradient:

    g2 = g B2                                       [rows, r]
    d = g W2 + g2 A2                                [rows, i]
    grad_hidden = swiglu_backward(hidden, w * d)    [rows, 2 i]
    g1 = grad_hidden B1
    grad_x[tokens] += grad_hidden W1 + g1 A1
    grad_A2 = (w g2)^T activated, grad_B2 = g^T (w a2)
    grad_A1 = g1^T rows, grad_B1 = grad_hidden^T a1

each of these a product with the matrix of the row's expert.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from intel_ft.kernels import expert_rows
from intel_ft.kernels.grouped import (
    ROW_MULTIPLE,
    Int8Experts,
    Int8Matrices,
    Int8Tiles,
    Rows,
    can_group,
    grouped_linear,
    grouped_outer,
)
from intel_ft.layers.experts import ExpertLinear, Experts, Order, SwiGLU, with_zero
from intel_ft.layers.lora_linear import Gradients

RANK_MULTIPLE = 32
"""LoRA's rank is filled up with zeros to a multiple of this, the depth of one AMX tile."""


def can_compute(experts: Experts) -> bool:
    """Whether `GroupedExperts` computes these experts on this machine."""
    weights = (experts.first.weight, experts.second.weight)
    return all(
        isinstance(weight, Int8Experts) or (weight is not None and can_group(weight))
        for weight in weights
    )


@dataclass(frozen=True, eq=False)
class GroupedLinear:
    """An `ExpertLinear` with the weights of one step.

    w [experts, out, in] or in int8; a [experts, rank, in]; b [experts, out, rank] has the scale; or
    None.
    """

    linear: ExpertLinear
    w: Tensor | Int8Experts
    a: Tensor | None
    b: Tensor | None

    @classmethod
    def of(cls, linear: ExpertLinear) -> "GroupedLinear":
        """For LoRA's present weights."""
        assert linear.weight is not None  # can_compute
        if linear.a is None or linear.b is None:
            return cls(linear, linear.weight, None, None)
        a, b = expert_rows.lora_matrices(
            linear.a, linear.b, linear.scale, linear.count, RANK_MULTIPLE
        )
        return cls(linear, linear.weight, a, b)

    def forward(self, rows: Rows, bounds: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output and `lora_a_out`, without the bias."""
        if isinstance(self.w, Int8Tiles):
            return self.w.linear(rows, bounds, self.a, self.b)
        x, more, a_out = rows.tensor(), [], None
        if self.a is not None and self.b is not None:
            a_out = grouped_linear([(x, self.a)], bounds)
            more = [(a_out, self.b)]
        if isinstance(self.w, Int8Matrices):
            return self.w.linear(x, bounds, more), a_out
        return grouped_linear([(x, self.w), *more], bounds), a_out

    def backward(self, grad: Rows, bounds: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradients of the input rows and of `lora_a_out`."""
        if isinstance(self.w, Int8Tiles):
            return self.w.input_gradient(grad, bounds, self.a, self.b)
        x, more, grad_a_out = grad.tensor(), [], None
        if self.a is not None and self.b is not None:
            grad_a_out = grouped_linear([(x, self.b.mT)], bounds)
            more = [(grad_a_out, self.a.mT)]
        if isinstance(self.w, Int8Matrices):
            return self.w.input_gradient(x, bounds, more), grad_a_out
        return grouped_linear([(x, self.w.mT), *more], bounds), grad_a_out

    def lora_gradients(
        self,
        grad: Rows,
        grad_a_out: Tensor | None,
        rows: Rows,
        a_out: Tensor | None,
        bounds: Tensor,
    ) -> Gradients:
        """Those of A and B in the shapes of peft's parameters, float32; empty without LoRA."""
        a, b = self.linear.a, self.linear.b
        if a is None or b is None or grad_a_out is None or a_out is None:
            return ()
        rank = len(a) // self.linear.count
        grad_a = grouped_outer(grad_a_out, rows, bounds, 1.0, rank)
        grad_b = grouped_outer(a_out, grad, bounds, self.linear.scale, rank, by_column=True)
        return grad_a.view(a.shape), grad_b.view(b.shape)


class GroupedExperts(torch.autograd.Function):
    """See layers.experts.ExpertsFunction: the same arguments, for `can_compute` experts."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, index: Tensor, weights: Tensor, experts: Experts, *_: Tensor
    ) -> Tensor:
        """The weighted sum of each token's experts."""
        first, second = GroupedLinear.of(experts.first), GroupedLinear.of(experts.second)
        order = Order.of(
            index, experts.first.count, lambda count: -(-count // ROW_MULTIPLE) * ROW_MULTIPLE
        )
        bounds = torch.tensor(order.bounds)
        hidden, first_a_out = first.forward(Rows(x, order.tokens), bounds)
        _add_bias(hidden, experts.first.bias, bounds)
        activated = Rows(hidden, gated=True)
        if not isinstance(experts.activation, SwiGLU):
            activated = Rows(experts.activation.forward(hidden))
        outs, second_a_out = second.forward(activated, bounds)
        _add_bias(outs, experts.second.bias, bounds)
        ctx.steps, ctx.activation, ctx.order = (first, second), experts.activation, order
        ctx.save_for_backward(x, weights, bounds, hidden, first_a_out, second_a_out)
        return order.sum_per_token(outs, weights.float())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, of the router's weights, and of each LoRA weight."""
        (first, second), order, activation = ctx.steps, ctx.order, ctx.activation
        x, weights, bounds, hidden, first_a_out, second_a_out = ctx.saved_tensors
        grad = Rows(gradients[0].contiguous(), order.tokens)
        weight = with_zero(weights.reshape(-1, 1).float()).index_select(0, order.pairs)
        d, grad_a_out = second.backward(grad, bounds)
        grad_hidden, activated, by_row = activation.backward(hidden, d, weight)
        if (bias := second.linear.bias) is not None:
            of_bias = grad.tensor() * bias.repeat_interleave(bounds.diff(), 0)
            by_row += of_bias.sum(-1, dtype=torch.float32)
        weighted = _scaled(grad_a_out, weight), Rows(activated), _scaled(second_a_out, weight)
        second_grads = second.lora_gradients(grad, *weighted, bounds)
        del d, activated, weighted
        grad_rows, grad_a_out = first.backward(Rows(grad_hidden), bounds)
        grad_x = order.sum_per_token(grad_rows) if ctx.needs_input_grad[0] else None
        del grad_rows
        rows = Rows(x, order.tokens)
        first_grads = first.lora_gradients(Rows(grad_hidden), grad_a_out, rows, first_a_out, bounds)
        grad_weights = by_row[order.places].to(weights.dtype).view_as(weights)
        return grad_x, None, grad_weights, None, *first_grads, *second_grads


def _scaled(rows: Tensor | None, weight: Tensor) -> Tensor | None:
    return None if rows is None else (rows * weight).to(rows.dtype)


def _add_bias(rows: Tensor, bias: Tensor | None, bounds: Tensor) -> None:
    if bias is not None:
        rows += bias.repeat_interleave(bounds.diff(), 0)
