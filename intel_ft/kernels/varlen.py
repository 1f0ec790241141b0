"""Causal attention over all segments of a packed row by torch's FlashAttention, on GPUs.

These are the operations that `torch.nn.attention.varlen.varlen_attn` calls. That function gives no
gradient without autograd, which the fused decoder layer needs, and torch 2.8 and 2.9 lack it.
"""

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from intel_ft.host.devices import BF16_CAPABILITY


def usable(q: Tensor) -> bool:
    """Whether FlashAttention takes q [tokens, heads, dim].

    It needs half precision, an Ampere GPU or newer, and a dim that is a multiple of 8 and at most
    256 (FlashAttention-2, Dao 2023).
    """
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and torch.cuda.get_device_capability(q.device) >= BF16_CAPABILITY
    )


def attend(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attention inside each segment; autograd knows its gradient.

    q [tokens, heads, dim]; k, v [tokens, kv_heads, dim]; bounds int64 [segments + 1] on the CPU;
    window: how many tokens each token attends to, including itself; None for all up to itself.
    Returns the output like q, and the logsumexp of the scores, float32 [heads, tokens].
    """
    segments, longest = _segments(tuple(bounds.tolist()), q.device)
    left = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
        query=q,
        key=k,
        value=v,
        cum_seq_q=segments,
        cum_seq_k=segments,
        max_q=longest,
        max_k=longest,
        dropout_p=0.0,
        is_causal=True,
        return_debug_mask=False,
        scale=scale,
        **left,
    )
    return out, logsumexp


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    scale: float,
    out: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v for an `attend` without a window."""
    segments, longest = _segments(tuple(bounds.tolist()), q.device)
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        grad_out=grad,
        query=q,
        key=k,
        value=v,
        out=out,
        logsumexp=logsumexp,
        cum_seq_q=segments,
        cum_seq_k=segments,
        max_q=longest,
        max_k=longest,
        dropout_p=0.0,
        is_causal=True,
        rng_state=torch.zeros(2, dtype=torch.uint64, device=q.device),  # unused without dropout
        unused=torch.empty(0, device=q.device),
        scale=scale,
    )
    return grads


@lru_cache(maxsize=2)
def _segments(bounds: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """The bounds as the kernel takes them, and the longest segment; the same for every layer."""
    longest = max(b - a for a, b in pairwise(bounds))
    return torch.tensor(bounds, dtype=torch.int32, device=device), longest
