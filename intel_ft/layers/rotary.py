"""Rotary positions as one kernel each way, in models whose decoder layers are not fused.

Transformers computes them in seven operations for q and seven for k, and their gradient in more.
They are a function of the model's module, which its attention calls by name: here the attention of
one model calls another one instead, so that other models of the process keep theirs.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from intel_ft.kernels import ops

_NAME = "apply_rotary_pos_emb"
_Rotate = Callable[..., tuple[Tensor, Tensor]]


class Rotary(torch.autograd.Function):
    """x [1, heads, tokens, dim] rotated by cos and sin [1, tokens, dim] (RoFormer, Su et al. 2021).

    As x cos + rotate_half(x) sin, rounded once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The output; in memory, heads follow tokens."""
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, backward=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x."""
        return _rotated(gradients[0], *ctx.saved_tensors, backward=True), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, backward: bool) -> Tensor:
    rows = x[0].transpose(0, 1).contiguous()
    return ops.rotate(rows, cos[0], sin[0], backward=backward).transpose(0, 1)[None]


def fuse_rotary(model: Any) -> int:
    """Have every attention of a model call the kernel, after a trial; returns their number.

    The kernel takes bf16 on a CPU; other calls go to the model's own function.
    """
    fused, forwards = 0, dict[type, FunctionType | None]()
    for module in model.modules():
        kind = type(module)
        if kind not in forwards:
            forwards[kind] = _with_kernel(kind.forward)
        if (forward := forwards[kind]) is not None and "forward" not in vars(module):
            module.forward = MethodType(forward, module)
            fused += 1
    return fused


def _with_kernel(forward: Any) -> FunctionType | None:
    """The method with another function in its globals, or None if it calls none that is equal."""
    if not isinstance(forward, FunctionType) or _NAME not in forward.__code__.co_names:
        return None
    own = forward.__globals__.get(_NAME)
    if own is None or not _is_equal(own):
        return None

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **options: Any) -> Any:
        if more or options or not all(_takes(x, cos, sin) for x in (q, k)):
            return own(q, k, cos, sin, *more, **options)
        return Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)  # type: ignore[no-untyped-call]

    code, arguments = forward.__code__, (forward.__defaults__, forward.__closure__)
    copy = FunctionType(code, forward.__globals__ | {_NAME: rotate}, forward.__name__, *arguments)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _takes(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    shape = (1, x.shape[-2], x.shape[-1])
    return (
        ops.compiled(x)
        and x.dim() == 4
        and len(x) == 1
        and x.shape[-1] % 2 == 0
        and cos.shape == sin.shape == shape
        and cos.dtype == sin.dtype == x.dtype
    )


def _is_equal(own: _Rotate) -> bool:
    """Whether the kernel and a model's function give the same output and gradient, to rounding."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    q, k, cos, sin = random(1, 4, 3, 16), random(1, 2, 3, 16), random(1, 3, 16), random(1, 3, 16)
    if not _takes(q, cos, sin):
        return False
    leaves, grads = [q.requires_grad_(), k.requires_grad_()], (random(*q.shape), random(*k.shape))
    kernel = [Rotary.apply(x, cos, sin) for x in leaves]  # type: ignore[no-untyped-call]
    try:
        outputs = own(q, k, cos, sin)
        expected = [*outputs, *torch.autograd.grad(outputs, leaves, grads)]
    except (TypeError, AttributeError, RuntimeError, ValueError):
        return False
    found = [*kernel, *torch.autograd.grad(kernel, leaves, grads)]
    return all(
        bool((one - other).float().norm() <= 0.02 * one.float().norm())
        for one, other in zip(expected, found, strict=True)
    )
