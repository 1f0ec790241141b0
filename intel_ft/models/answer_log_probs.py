"""The log-probability of each answer in a packed row, for losses that compare answers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from intel_ft.batching.row import Row, segments_of
from intel_ft.kernels import ops
from intel_ft.models.loss import (
    LazyLogits,
    chunk_factor,
    chunk_rows,
    frozen_head_losses,
    scores,
)
from intel_ft.models.model_inputs import autocast, model_inputs


def answer_log_probs(
    model: Any, row: Row, *, packed: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """The log-probability of each answer in a row, float64 [answers].

    That of an answer is the sum over its supervised tokens. packed, dtype: as for `loss_sum`, but
    without packing each answer is a forward pass of its own.
    """
    if not packed and len(row.bounds) != 2:
        parts = segments_of(row)
        return torch.cat([answer_log_probs(model, p, packed=packed, dtype=dtype) for p in parts])
    inputs = model_inputs(row, model, packed=packed)
    with autocast(dtype or model.dtype, model.device):
        losses = frozen_head_losses(model, inputs)
        if losses is None:
            logits = scores(model, inputs)
            losses = RecomputedLoss.apply(logits.values, logits.weight, inputs.targets)  # type: ignore[no-untyped-call]
    count, answers, reads = row.read_by()
    totals = torch.zeros(count, dtype=torch.float64, device=losses.device)
    who, which = (torch.from_numpy(x).to(losses.device) for x in (answers, reads))
    return totals.index_add(0, who, -losses[which].double())


class RecomputedLoss(torch.autograd.Function):
    """The cross-entropy of each token as in HeadLoss, for a head that trains or logits as such.

    The gradient of the head's weight needs that of each loss, so backward computes the logits of
    each chunk again. See LazyLogits for values and weight.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor | None, targets: Tensor) -> Tensor:
        """The loss of each token, float32 [supervised]; 0 where the target is IGNORED."""
        ctx.save_for_backward(values, weight, targets)
        losses = torch.zeros(len(targets), device=values.device)
        for chunk, logits in _chunks_of_logits(values, weight):
            losses[chunk] = ops.cross_entropy(logits, targets[chunk])
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of values and weight."""
        values, weight, targets = ctx.saved_tensors
        grad_values = torch.zeros_like(values)
        grad_weight = None
        if weight is not None and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(weight.shape, device=weight.device)
        for chunk, logits in _chunks_of_logits(values, weight):
            ops.cross_entropy(logits, targets[chunk])
            grad = (logits * gradients[0][chunk, None]).to(values.dtype)
            grad_values[chunk] = grad if weight is None else grad @ weight
            if grad_weight is not None:
                grad_weight += (grad.T @ values[chunk]).float()
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_values, grad_weight, None


def _chunks_of_logits(values: Tensor, weight: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Which supervised tokens a chunk has, and a float32 copy of their logits."""
    scores = LazyLogits(values, weight)
    rows = chunk_rows(scores.vocabulary, 4) * chunk_factor(values)
    for start in range(0, len(values), rows):
        chunk = slice(start, start + rows)
        logits = scores.logits(chunk)
        yield chunk, logits.clone() if logits.dtype == torch.float32 else logits.float()
