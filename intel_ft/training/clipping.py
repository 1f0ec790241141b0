"""Gradient clipping on CPUs: torch's own reads all gradients on one thread, and writes them too."""

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_gradients(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_; returns the norm before clipping.

    The norm of each matrix is taken row by row, which torch shares among threads. Gradients below
    `max_norm` are not written.
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
