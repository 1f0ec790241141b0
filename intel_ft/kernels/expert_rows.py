"""Operations on rows between the GEMMs of a layer of experts: gather, activate, sum per token.

A row is a pair of token and expert; rows are sorted by expert (layers.experts). bf16 tensors on a
CPU go to the compiled kernels (expert_rows.cpp) if these are loaded; for others torch operations
compute the same formula. `lora_matrices` needs the compiled kernels, as layers.grouped_experts
does.
"""

import torch
from torch import Tensor

from intel_ft.kernels import ops
from intel_ft.kernels.ops import call, compiled


def gather(x: Tensor, tokens: Tensor) -> Tensor:
    """[rows, size]: x [T, size] at tokens int64 [rows]; zeros where `tokens` has T."""
    if compiled(x):
        out = x.new_empty(len(tokens), x.shape[1])
        call("rows_gather", x, tokens, len(x), *out.shape, out)
        return out
    return torch.cat((x, x.new_zeros(1, x.shape[1]))).index_select(0, tokens)


def sum_rows(rows: Tensor, places: Tensor, weights: Tensor | None) -> Tensor:
    """[T, size]: the sum of rows[places[t]] of each token, times weights, rounded once.

    rows [R, size]; places int64 [T, k]; weights float32 [T, k], or None for ones.
    """
    if compiled(rows):
        out = rows.new_empty(len(places), rows.shape[1])
        call("rows_sum", rows, places, weights, *places.shape, rows.shape[1], out)
        return out
    total = torch.zeros(len(places), rows.shape[1], device=rows.device)
    for which, chosen in enumerate(places.unbind(1)):
        part = rows.index_select(0, chosen).float()
        total += part if weights is None else part.mul_(weights[:, which, None])
    return total.to(rows.dtype)


def swiglu(hidden: Tensor) -> Tensor:
    """silu(gate) * up [rows, size] of hidden [rows, gate and up]."""
    if compiled(hidden):
        out = hidden.new_empty(len(hidden), hidden.shape[1] // 2)
        call("rows_swiglu", hidden, *out.shape, out)
        return out
    gate, up = hidden.chunk(2, dim=-1)
    return ops.swiglu(gate.contiguous(), up.contiguous())


def swiglu_backward(hidden: Tensor, d: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See layers.experts.Activation.backward."""
    if compiled(hidden):
        grad, out, dots = torch.empty_like(hidden), torch.empty_like(d), torch.empty(len(d))
        call("rows_swiglu_backward", hidden, d, weight, *d.shape, grad, out, dots)
        return grad, out, dots
    gate, up = (half.contiguous() for half in hidden.chunk(2, dim=-1))
    grad_gate, grad_up, out = ops.swiglu_backward(gate, up, (d * weight).to(d.dtype))
    return torch.cat((grad_gate, grad_up), -1), out, (d * out).sum(-1, dtype=torch.float32)


def lora_matrices(
    a: Tensor, b: Tensor, scale: float, experts: int, multiple: int
) -> tuple[Tensor, Tensor]:
    """A [experts, rank, in] and scale * B [experts, out, rank] in bf16, from peft's float32.

    a [experts * rank, in]; b [out, rank * experts], the expert innermost. Zeros fill the rank up to
    a multiple of `multiple`.
    """
    rank, inner = len(a) // experts, a.shape[1]
    padded = -(-rank // multiple) * multiple
    out_a = torch.empty(experts, padded, inner, dtype=torch.bfloat16)
    out_b = torch.empty(experts, len(b), padded, dtype=torch.bfloat16)
    sizes = experts, rank, padded, inner, len(b)
    call("experts_lora", a.detach(), b.detach(), float(scale), *sizes, out_a, out_b)
    return out_a, out_b
