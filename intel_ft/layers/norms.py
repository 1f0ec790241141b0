"""RMSNorm as one forward and one backward kernel, in models whose decoder layers are not fused.

Transformers computes it in seven operations, which keep a float32 copy of the input for backward.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from intel_ft.kernels import ops


class RmsNorm(torch.autograd.Function):
    """weight * x / rms(x) for x [..., size], with the weight [size] frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """The output, like x."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        ctx.save_for_backward(rows, weight)
        ctx.eps = eps
        return ops.rms_norm(rows, weight, eps).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x."""
        rows, weight = ctx.saved_tensors
        grad = gradients[0].reshape(rows.shape).contiguous()
        return (
            ops.rms_norm_backward(rows, weight, grad, ctx.eps).view(gradients[0].shape),
            None,
            None,
        )


def fuse_norms(model: Any) -> int:
    """Fuse every frozen RMSNorm whose output stays the same in a trial; returns their number.

    The compiled kernels take weights in bf16 on a CPU; other norms stay as they are.
    """
    fused = 0
    for module in model.modules():
        if _is_norm(module) and _is_equal(module):
            module.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _is_norm(module: Any) -> bool:
    weights = dict(module.named_parameters())
    return (
        type(module).__name__.endswith("RMSNorm")
        and hasattr(module, "variance_epsilon")
        and weights.keys() == {"weight"}
        and module.weight.dim() == 1
        and not module.weight.requires_grad
        and ops.compiled(module.weight)
    )


@torch.no_grad()
def _is_equal(module: Any) -> bool:
    """Whether kernel and module give the same output, to rounding, for rows of three magnitudes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, len(module.weight), generator=generator)
    x = (x * torch.tensor([1e-3, 1.0, 1.0, 30.0])[:, None]).to(module.weight.dtype)
    try:
        expected = type(module).forward(module, x)
    except (TypeError, AttributeError, RuntimeError):  # such as a norm that takes a gate, too
        return False
    found = ops.rms_norm(x, module.weight, module.variance_epsilon)
    return expected.shape == found.shape and torch.allclose(found, expected, rtol=0.02, atol=1e-6)


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    out: Tensor
    if hidden_states.dtype != self.weight.dtype:
        out = type(self).forward(self, hidden_states)
    else:
        out = RmsNorm.apply(  # type: ignore[no-untyped-call]
            hidden_states, self.weight, self.variance_epsilon
        )
    return out
