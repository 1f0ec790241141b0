"""The experts of a mixture with LoRA as one autograd function, its gradient written out.

Each token meets k of E experts. The k T pairs of token and expert are sorted by expert once, so
that each expert computes a GEMM of its own rows; no tensor has E times T rows, and LoRA's A and B
multiply the rows of their expert, so that no delta of all experts' weights is built.

A worked example with T tokens of size h, experts of size i, LoRA rank r; x_e are the rows of the
tokens that expert e gets, g_e their output's gradient, w_e the router's weights [rows, 1]:

    hidden_e = W1_e(x_e)                            [rows, 2 i], gate and up
    activated = silu(gate) * up                     [rows, i]
    out[tokens] += w_e * W2_e(activated)            [T, h]

Saved for backward are x, hidden and the `lora_a_out` of both. Backward recomputes `activated`:

    d = g_e W2_e                                    [rows, i]
    grad_w_e = sum(d * activated) + g_e bias2
    grad_hidden = swiglu_backward(gate, up, w_e * d)
    grad_x[tokens] += grad_hidden W1_e

where W(x) is a linear layer of `layers.lora_linear`, in any layout of its frozen weight.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.kernels import expert_rows
from intel_ft.kernels.grouped import Int8Experts
from intel_ft.layers.lora_linear import Dense, FrozenWeight, Gradients, LoraStep


class Activation(Protocol):
    """What comes between an expert's two matrices, elementwise over its rows."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[rows, i] for hidden [rows, 2 i] (or [rows, i] without a gate)."""
        ...

    def backward(self, hidden: Tensor, d: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For d [rows, i], the gradient of the output before the router's weight float32 [rows, 1].

        Returns the gradient of hidden for weight * d, the output once more, and the sums of d times
        the output, float32 [rows].
        """
        ...


class SwiGLU:
    """silu(gate) * up of hidden [rows, gate and up]."""

    def forward(self, hidden: Tensor) -> Tensor:
        """See Activation."""
        return expert_rows.swiglu(hidden)

    def backward(self, hidden: Tensor, d: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See Activation."""
        return expert_rows.swiglu_backward(hidden, d, weight)


@dataclass(frozen=True, eq=False)
class ModelActivation:
    """The activation of a model's own code, differentiated by autograd."""

    function: Callable[[Tensor], Tensor]

    def forward(self, hidden: Tensor) -> Tensor:
        """See Activation."""
        return self.function(hidden)

    def backward(self, hidden: Tensor, d: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See Activation."""
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_(True)
            out = self.function(hidden)
        grad = torch.autograd.grad(out, hidden, (d * weight).to(d.dtype))[0]
        out = out.detach()
        return grad, out, (d * out).sum(-1, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class ExpertLinear:
    """One matrix of each expert, frozen, with LoRA of each expert or without.

    bases: of each expert, without a bias; weight: the same as one tensor [experts, out, in], of
    which the bases are views, or in int8, for layers.grouped_experts, without bases; bias:
    [experts, out] or None; a [experts * rank, in] and b [out, rank * experts] are float32, as peft
    keeps them, or both None.
    """

    bases: Sequence[FrozenWeight]
    weight: Tensor | Int8Experts | None = None
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """A and B, or an empty tuple."""
        return () if self.a is None or self.b is None else (self.a, self.b)

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and outputs."""
        return self.bases[0].dtype if self.bases else torch.bfloat16

    @property
    def count(self) -> int:
        """The number of experts."""
        return len(self.weight.values if isinstance(self.weight, Int8Experts) else self.bases)

    @property
    def pads(self) -> bool:
        """Whether oneDNN computes it, and generates a kernel for each number of rows."""
        base = self.bases[0]
        return not (isinstance(base, Dense) and base.dtype == torch.float32)

    def without_lora(self) -> "ExpertLinear":
        """The frozen part alone."""
        return replace(self, a=None, b=None)

    def start_step(self) -> "ExpertStep":
        """The matrices with their present weights, for one forward and its backward."""
        if self.a is None or self.b is None:
            return ExpertStep(self, [LoraStep(base) for base in self.bases])
        count, dtype = len(self.bases), self.bases[0].dtype
        a = self.a.to(dtype).view(count, -1, self.a.shape[1])
        b = (self.b * self.scale).to(dtype).view(len(self.b), -1, count)
        parts = zip(self.bases, a.unbind(), b.permute(2, 0, 1).contiguous().unbind(), strict=True)
        return ExpertStep(self, [LoraStep(w, a=a, b=b, scale=self.scale) for w, a, b in parts])


@dataclass(frozen=True, eq=False)
class ExpertStep:
    """The GEMMs of an `ExpertLinear` with the weights of one step."""

    linear: ExpertLinear
    experts: list[LoraStep]

    def forward(self, expert: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The output [rows, out] of one expert for x [rows, in], and its `lora_a_out`."""
        out, lora_a_out = self.experts[expert].forward(x)
        if self.linear.bias is not None:
            out.add_(self.linear.bias[expert])
        return out, lora_a_out

    def new_gradients(self) -> "ExpertGradients":
        """Zero gradients of A and B, to be filled expert by expert."""
        a, b, count = self.linear.a, self.linear.b, len(self.experts)
        if a is None or b is None:
            return ExpertGradients(None, None)
        shape_b = count, len(b), b.shape[1] // count
        return ExpertGradients(
            torch.zeros_like(a).view(count, -1, a.shape[1]), b.new_zeros(shape_b)
        )


@dataclass(frozen=True, eq=False)
class ExpertGradients:
    """The gradients of A [experts, rank, in] and B [experts, out, rank], float32, or None."""

    a: Tensor | None
    b: Tensor | None

    def put(self, expert: int, gradients: Gradients) -> None:
        """Set those of one expert."""
        if self.a is not None and self.b is not None:
            grad_a, grad_b = gradients
            self.a[expert], self.b[expert] = grad_a, grad_b

    def as_peft(self) -> Gradients:
        """In the shapes of peft's parameters."""
        if self.a is None or self.b is None:
            return ()
        return self.a.flatten(0, 1), self.b.permute(1, 2, 0).flatten(1)


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts of one layer as data."""

    first: ExpertLinear
    second: ExpertLinear
    activation: Activation

    @property
    def trained(self) -> tuple[Tensor, ...]:
        """LoRA's weights."""
        return *self.first.trained, *self.second.trained

    def without_lora(self) -> "Experts":
        """The frozen part alone."""
        return replace(self, first=self.first.without_lora(), second=self.second.without_lora())


@dataclass(frozen=True, eq=False)
class Order:
    """The pairs of token and expert as rows, sorted by expert.

    tokens int64 [rows]: the token of each row; pairs int64 [rows]: the pair (token * k + which of
    its experts); places int64 [T, k]: each pair's row; bounds: where each expert's rows begin, and
    the end. Rows that only pad have the token T and the pair T k.
    """

    tokens: Tensor
    pairs: Tensor
    places: Tensor
    bounds: list[int]

    @classmethod
    def of(cls, index: Tensor, experts: int, size: Callable[[int], int]) -> "Order":
        """For index int64 [T, k], the experts of each token; size: of an expert's padded rows."""
        flat = index.reshape(-1).cpu().numpy()
        pairs = flat.astype(np.int16).argsort(kind="stable")  # numpy sorts 16-bit integers by radix
        counts = np.bincount(flat, minlength=experts)
        bounds = [0, *accumulate(map(size, counts.tolist()))]
        shift = np.array(bounds[:-1]) - (counts.cumsum() - counts)
        rows = np.arange(len(flat)) + shift.repeat(counts)
        by_row = np.full(bounds[-1], len(flat))
        by_row[rows] = pairs
        places = np.empty_like(flat)
        places[pairs] = rows
        tokens = by_row // index.shape[-1]
        parts = (torch.from_numpy(part).to(index.device) for part in (tokens, by_row, places))
        return cls(next(parts), next(parts), next(parts).view_as(index), bounds)

    def sum_per_token(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """[T, size]: the sum of each token's rows [rows, size], weighted by float32 [T, k]."""
        return expert_rows.sum_rows(rows, self.places, weights)


FEWEST_ROWS = 32


def padded_rows(count: int) -> int:
    """`count` rounded up to one of few sizes, four for each doubling: 32, 64, 96, 128, 192, 256.

    oneDNN generates a kernel for each number of rows that it meets, which takes milliseconds, and
    an expert gets any number.
    """
    step = max(FEWEST_ROWS, (1 << max(count - 1, 0).bit_length()) // 4)
    return -(-count // step) * step


def with_zero(rows: Tensor) -> Tensor:
    """`rows` and one more, of zeros, which padding reads."""
    return torch.cat((rows, rows.new_zeros(1, *rows.shape[1:])))


def groups(bounds: list[int]) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, and which."""
    for expert, (start, stop) in enumerate(pairwise(bounds)):
        if stop > start:
            yield expert, slice(start, stop)


class ExpertsFunction(torch.autograd.Function):
    """x [T, h] -> [T, h]; index int64 [T, k], weights [T, k] as the router gives them.

    The LoRA weights are arguments only to make autograd call backward for them.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, index: Tensor, weights: Tensor, experts: Experts, *_: Tensor
    ) -> Tensor:
        """The weighted sum of each token's experts."""
        first, second = experts.first.start_step(), experts.second.start_step()
        size = padded_rows if experts.first.pads else int
        order = Order.of(index, len(first.experts), size)
        inputs, saved = with_zero(x), []
        outs = x.new_empty(len(order.tokens), x.shape[1])
        for expert, rows in groups(order.bounds):
            part = inputs.index_select(0, order.tokens[rows])
            hidden, first_a_out = first.forward(expert, part)
            outs[rows], second_a_out = second.forward(expert, experts.activation.forward(hidden))
            saved += [hidden, first_a_out, second_a_out]
        ctx.steps, ctx.activation, ctx.order = (first, second), experts.activation, order
        ctx.save_for_backward(x, weights, *saved)
        return order.sum_per_token(outs, weights.float())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, of the router's weights, and of each LoRA weight."""
        (first, second), order, activation = ctx.steps, ctx.order, ctx.activation
        x, weights, *saved = ctx.saved_tensors
        inputs, grads = with_zero(x), with_zero(gradients[0])
        by_row = with_zero(weights.reshape(-1, 1).float()).index_select(0, order.pairs)
        grad_by_row = torch.empty_like(by_row)
        grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_rows = x.new_empty(len(order.tokens), x.shape[1])
        first_grads, second_grads = first.new_gradients(), second.new_gradients()
        for which, (expert, rows) in enumerate(groups(order.bounds)):
            hidden, first_a_out, second_a_out = saved[3 * which : 3 * which + 3]
            weight, g = by_row[rows], grads.index_select(0, order.tokens[rows])
            step = second.experts[expert]
            g_a_out = step.lora_a_out_gradient(g)
            d = step.input_gradient(g, g_a_out)
            grad_hidden, activated, dots = activation.backward(hidden, d, weight)
            grad_by_row[rows] = dots[:, None]
            if second.linear.bias is not None:
                grad_by_row[rows] += g.float() @ second.linear.bias[expert].float()[:, None]
            if g_a_out is not None:
                weighted = (g * weight).to(g.dtype), (g_a_out * weight).to(g.dtype)
                second_grads.put(expert, step.lora_gradients(*weighted, activated, second_a_out))
            del d, activated
            step = first.experts[expert]
            grad_a_out = step.lora_a_out_gradient(grad_hidden)
            if grad_rows is not None:
                grad_rows[rows] = step.input_gradient(grad_hidden, grad_a_out)
            if grad_a_out is not None:
                part = inputs.index_select(0, order.tokens[rows])
                first_grads.put(
                    expert, step.lora_gradients(grad_hidden, grad_a_out, part, first_a_out)
                )
        grad_x = None if grad_rows is None else order.sum_per_token(grad_rows)
        grad_weights = grad_by_row.view(-1)[order.places].to(weights.dtype)
        lora = (*first_grads.as_peft(), *second_grads.as_peft())
        return grad_x, None, grad_weights.view_as(weights), None, *lora


class SortedLinear(torch.autograd.Function):
    """One `ExpertLinear` over rows [S, in] that are sorted by expert already, as in Granite MoE.

    bounds: where each expert's rows begin, and the end.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bounds: list[int], linear: ExpertLinear, *_: Tensor) -> Tensor:
        """The output [S, out]."""
        step, a_outs, outs = linear.start_step(), [], []
        for expert, rows in groups(bounds):
            out, a_out = step.forward(expert, _padded(x[rows], linear.pads))
            outs.append(out[: rows.stop - rows.start])
            a_outs.append(a_out)
        ctx.step, ctx.bounds = step, bounds
        ctx.save_for_backward(x, *a_outs)
        return torch.cat(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B."""
        step, (x, *a_outs) = ctx.step, ctx.saved_tensors
        grads, pads = step.new_gradients(), step.linear.pads
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for a_out, (expert, rows) in zip(a_outs, groups(ctx.bounds), strict=True):
            part, grad = step.experts[expert], _padded(gradients[0][rows], pads)
            grad_a_out = part.lora_a_out_gradient(grad)
            if grad_x is not None:
                grad_x[rows] = part.input_gradient(grad, grad_a_out)[: rows.stop - rows.start]
            if grad_a_out is not None:
                of_lora = part.lora_gradients(grad, grad_a_out, _padded(x[rows], pads), a_out)
                grads.put(expert, of_lora)
        return grad_x, None, None, *grads.as_peft()


def _padded(rows: Tensor, pads: bool) -> Tensor:
    """`rows`, with zeros up to `padded_rows` if `pads`."""
    more = padded_rows(len(rows)) - len(rows) if pads else 0
    return F.pad(rows, (0, 0, 0, more)) if more else rows.contiguous()
