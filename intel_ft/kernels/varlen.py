"""Causal attention over all segments of a packed row by torch's FlashAttention, on GPUs.

These are the operations that `torch.nn.attention.varlen.varlen_attn` calls. That function gives no
gradient without autograd, which the fused decoder layer needs, and torch 2.8 and 2.9 lack it.
"""

from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.host.devices import BF16_CAPABILITY
from intel_ft.kernels.chains import ancestors


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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    parents: Tensor | None,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of each segment to itself and those that it follows; autograd knows its gradient.

    q [tokens, heads, dim]; k, v [tokens, kv_heads, dim]; bounds, parents: see kernels.chains, on
    the CPU; window: how many tokens each token attends to, including itself; None for all up to
    itself. Returns the output like q, and the logsumexp of the scores, float32 [heads, tokens].
    """
    segments, longest = _segments(tuple(bounds.tolist()), q.device)
    places, of_keys, longest_keys = _keys(bounds, parents, q.device)
    if places is not None:
        k, v = k[places], v[places]
    left = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
        query=q,
        key=k,
        value=v,
        cum_seq_q=segments,
        cum_seq_k=of_keys,
        max_q=longest,
        max_k=longest_keys,
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
    parents: Tensor | None,
    scale: float,
    out: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v for an `attend` without a window."""
    segments, longest = _segments(tuple(bounds.tolist()), q.device)
    places, of_keys, longest_keys = _keys(bounds, parents, q.device)
    of_tokens = k, v
    if places is not None:
        k, v = k[places], v[places]
    grad_q, *grads = torch.ops.aten._flash_attention_backward(
        grad_out=grad,
        query=q,
        key=k,
        value=v,
        out=out,
        logsumexp=logsumexp,
        cum_seq_q=segments,
        cum_seq_k=of_keys,
        max_q=longest,
        max_k=longest_keys,
        dropout_p=0.0,
        is_causal=True,
        rng_state=torch.zeros(2, dtype=torch.uint64, device=q.device),  # unused without dropout
        unused=torch.empty(0, device=q.device),
        scale=scale,
    )
    if places is not None:  # a token's gradient is the sum of those of all segments that read it
        grads = [
            torch.zeros_like(x, dtype=torch.float32).index_add_(0, places, grad.float()).to(x.dtype)
            for x, grad in zip(of_tokens, grads, strict=True)
        ]
    return grad_q, grads[0], grads[1]


@lru_cache(maxsize=2)
def _segments(bounds: tuple[int, ...], device: torch.device) -> tuple[Tensor, int]:
    """The bounds as the kernel takes them, and the longest segment; the same for every layer."""
    longest = max(b - a for a, b in pairwise(bounds))
    return torch.tensor(bounds, dtype=torch.int32, device=device), longest


def _keys(
    bounds: Tensor, parents: Tensor | None, device: torch.device
) -> tuple[Tensor | None, Tensor, int]:
    """The places of the keys of all segments (None: all tokens, in order), and their bounds.

    FlashAttention aligns a segment's last query with its last key.
    """
    of_segments, longest = _segments(tuple(bounds.tolist()), device)
    if parents is None:
        return None, of_segments, longest
    return _keys_of_chains(tuple(bounds.tolist()), tuple(parents.tolist()), device)


@lru_cache(maxsize=2)
def _keys_of_chains(
    bounds: tuple[int, ...], parents: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, int]:
    chains = ancestors(torch.tensor(bounds), torch.tensor(parents))
    parts = [
        own if before is None else torch.cat((before, own))
        for before, own in zip(chains, map(torch.arange, bounds, bounds[1:]), strict=True)
    ]
    lengths = torch.tensor([len(part) for part in parts])
    of_keys = F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    return torch.cat(parts).to(device), of_keys, int(lengths.max())
