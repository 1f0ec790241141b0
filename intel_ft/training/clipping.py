"""Gradient clipping on CPUs. torch's own takes the norm of a tensor on one thread."""

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_; returns the norm before clipping.

    The norm of each matrix is taken row by row, which torch shares among threads. Gradients are
    only written if their norm is above `max_norm`.
    """
    parts = [
        torch.linalg.vector_norm(gradient, dim=-1 if gradient.dim() > 1 else None).flatten()
        for gradient in gradients
    ]
    norm = torch.linalg.vector_norm(torch.cat(parts)) if parts else torch.zeros(())
    factor = max_norm / (float(norm) + 1e-6)
    if factor < 1:
        torch._foreach_mul_(list(gradients), factor)
    return norm
