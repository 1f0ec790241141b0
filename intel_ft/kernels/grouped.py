"""Products over rows that are sorted by expert, each expert with a matrix of its own.

bf16 tensors on a CPU go to the compiled kernels (experts.cpp), where those are loaded; others are
computed expert by expert with torch operations.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from intel_ft.kernels.ops import call, compiled

ROW_MULTIPLE = 16
"""Each expert's rows begin and end at a multiple of this, in the compiled kernels."""

Term = tuple[Tensor, Tensor]
"""x [rows, k] and w [experts, n, k], of which one matrix or its transpose is contiguous."""


def can_group(weight: Tensor) -> bool:
    """Whether the compiled kernels take this weight [experts, n, k]."""
    return (
        compiled(weight)
        and min(weight.stride()[1:]) == 1
        and not any(size % 2 for size in weight.shape[1:])
    )


def grouped_linear(terms: Sequence[Term], bounds: Tensor) -> Tensor:
    """The sum of x[i] w[e]^T over the terms, e the expert of row i: [rows, n].

    bounds int64 [experts + 1]: where each expert's rows begin, and the end.
    """
    x, w = terms[0]
    if not all(can_group(weight) for _, weight in terms):
        return _by_expert(terms, bounds)
    out = x.new_empty(len(x), w.shape[1])
    numbers = []
    for rows, weight in terms:
        if not rows.is_contiguous() or rows.shape[1] != weight.shape[2]:
            raise ValueError(f"{tuple(rows.shape)} are no contiguous rows for {weight.shape}")
        by_output = weight.stride(2) == 1
        leading = weight.stride(1) if by_output else weight.stride(2)
        place = rows.data_ptr(), weight.data_ptr()
        numbers += [*place, weight.shape[2], weight.stride(0), leading, int(by_output)]
    table = torch.tensor(numbers)
    call("grouped_linear", table, len(terms), bounds, len(bounds) - 1, w.shape[1], out)
    return out


def grouped_outer(p: Tensor, q: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """scale * p_e^T q_e over each expert's rows, float32 [experts, r, size].

    p [rows, r], q [rows, size].
    """
    experts, shape = len(bounds) - 1, (p.shape[1], q.shape[1])
    if not compiled(p) or not compiled(q):
        ends = bounds.tolist()
        parts = [p[a:b].float().T @ q[a:b].float() * scale for a, b in pairwise(ends)]
        return torch.stack(parts)
    out = torch.empty(experts, *shape)
    call("grouped_outer", p, q, bounds, experts, *shape, scale, out)
    return out


def _by_expert(terms: Sequence[Term], bounds: Tensor) -> Tensor:
    x, w = terms[0]
    out = torch.zeros(len(x), w.shape[1], device=x.device)
    for expert, (start, stop) in enumerate(pairwise(bounds.tolist())):
        for rows, weight in terms:
            out[start:stop] += rows[start:stop].float() @ weight[expert].float().T
    return out.to(x.dtype)
