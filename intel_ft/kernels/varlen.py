"""Causal attention over all segments of a row in one call, by the FlashAttention that is in torch;
called from kernels.ops and models.packed.

It is what `torch.nn.attention.varlen.varlen_attn` calls. That has no way to get the gradient
without autograd, which the hand-written layer needs, and torch 2.8 and 2.9 do not have it.
"""

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from intel_ft.host.devices import BF16_CAPABILITY


def usable(q: Tensor) -> bool:
    """Whether FlashAttention takes q [tokens, heads, dim]: half precision, on an Ampere GPU or
    newer, and dim a multiple of 8 up to 256 (Dao, FlashAttention 2).
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
    window: tokens that each sees, itself the last, None for all before it. Returns the output like
    q, and the log of each softmax's sum, float32 [heads, tokens].
    """
    segments, longest = _segments(tuple(bounds.tolist()), q.device)
    left = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
        *(q, k, v, segments, segments, longest, longest, 0.0, True, False), scale=scale, **left
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
    """The gradients of q, k and v of an `attend` without a window."""
    segments, longest = _segments(tuple(bounds.tolist()), q.device)
    seeds = torch.zeros(
        2, dtype=torch.uint64, device=q.device
    )  # of dropout, of which there is none
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        *(grad, q, k, v, out, logsumexp, segments, segments, longest, longest, 0.0, True),
        *(seeds, torch.empty(0, device=q.device)),
        scale=scale,
    )
    return grads


@lru_cache(maxsize=2)
def _segments(bounds: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """The bounds as the kernel takes them, and the longest segment: every layer asks again."""
    longest = max(b - a for a, b in pairwise(bounds))
    return torch.tensor(bounds, dtype=torch.int32, device=device), longest
