"""A linear layer with LoRA as one autograd function; called from models.adapter.

peft computes base(x) + scale * B(A(x)) as separate operations, which casts x to the float32 of the
LoRA weights and back, and keeps several copies of it for backward. Here the low-rank part is added
onto the base product in place, its scale folded into B, and only x is kept.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor


class LoraLinear(torch.autograd.Function):
    """x W^T + bias + scale * (x A^T) B^T, with gradients for x, A and B; W and bias are frozen.

    x [..., in] in the dtype of weight [out, in]; a [rank, in] and b [out, rank] in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        """The output [..., out], in the dtype of weight."""
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, weight, a, b)
        ctx.scale = scale
        low = flat @ a.to(flat.dtype).T
        out = F.linear(flat, weight, bias)
        out.addmm_(low, (b * scale).to(flat.dtype).T)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, a and b; x A^T is computed again rather than kept."""
        flat, weight, a, b = ctx.saved_tensors
        grad = gradients[0].reshape(-1, weight.shape[0])
        half_a, half_b = a.to(flat.dtype), (b * ctx.scale).to(flat.dtype)
        grad_low = grad @ half_b
        grad_a = (grad_low.T @ flat).to(a.dtype)
        grad_b = (grad.T @ (flat @ half_a.T)).to(b.dtype) * ctx.scale
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, half_a)
            grad_x = grad_x.view(*gradients[0].shape[:-1], -1)
        return grad_x, None, None, grad_a, grad_b, None


def fuse(model: Any) -> int:
    """Give every plain LoRA layer of a PEFT model the fused forward; returns how many it was.

    Layers with dropout or DoRA, and those that are not `torch.nn.Linear`, keep peft's own.
    """
    fused = 0
    for module in model.modules():
        if type(module) is Linear and _is_plain(module):
            module.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _is_plain(module: Any) -> bool:
    return (
        type(module.base_layer) is torch.nn.Linear
        and isinstance(module.lora_dropout["default"], torch.nn.Identity)
        and not module.use_dora["default"]
        and not module.lora_bias["default"]
    )


def _forward(self: Any, x: Tensor) -> Tensor:
    base = self.base_layer
    out: Tensor = LoraLinear.apply(  # type: ignore[no-untyped-call]
        x.to(base.weight.dtype),
        base.weight,
        base.bias,
        self.lora_A["default"].weight,
        self.lora_B["default"].weight,
        self.scaling["default"],
    )
    return out
