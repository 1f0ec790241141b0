"""RMSNorm, SwiGLU, segment attention and cross-entropy with their gradients, by hand; called from
models.

Each takes bf16 tensors of a CPU to the compiled kernels where those are loaded, and anything else
(float32, no compiler, a GPU) through the same formula in torch operations, which on a GPU become
one kernel (kernels.generated). Tensors are contiguous: the compiled kernels see no strides, and
any others are refused.
"""

import ctypes
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.kernels import varlen
from intel_ft.kernels.build import kernels
from intel_ft.kernels.inductor import generated


def _call(name: str, *arguments: Any, returns: Any = None) -> Any:
    """Call a compiled kernel; every kernel takes the number of threads last."""
    function = getattr(kernels().library, name)
    function.restype = returns
    return function(*map(_c_value, arguments), ctypes.c_int(torch.get_num_threads()))


def _c_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.is_contiguous():
            raise ValueError(f"a kernel was given a tensor of strides {value.stride()}")
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return None if value is None else ctypes.c_int64(value)


def _compiled(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype == torch.bfloat16 and kernels().library is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / rms(x) over the last dimension; x [rows, size], weight [size]."""
    if _compiled(x):
        out = torch.empty_like(x)
        _call("rms_norm", x, weight, eps, out, *x.shape)
        return out
    return _rms_norm(x, weight, eps)


@generated
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def rms_norm_backward(
    x: Tensor, weight: Tensor, grad: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    """The gradient of x, all [rows, size]; `residual`, that of the branch around, is added."""
    if _compiled(x):
        out = torch.empty_like(x)
        _call("rms_norm_backward", x, weight, grad, residual, eps, out, *x.shape)
        return out
    return _rms_norm_backward(x, weight, grad, eps, residual)


@generated
def _rms_norm_backward(
    x: Tensor, weight: Tensor, grad: Tensor, eps: float, residual: Tensor | None
) -> Tensor:
    wide, inner = x.float(), grad.float() * weight.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out = scale * inner - wide * scale**3 * (wide * inner).mean(-1, keepdim=True)
    return (out if residual is None else out + residual.float()).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise."""
    if _compiled(gate):
        out = torch.empty_like(gate)
        _call("swiglu", gate, up, out, gate.numel())
        return out
    return _swiglu(gate, up)


@generated
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def dropout(x: Tensor, rate: float, seed: int, onto: Tensor | None = None) -> Tensor:
    """x with each element set to 0 with probability `rate`, the others over 1 - rate; added onto
    `onto` in place where that is given. Seed (below 2^32) and shape decide which elements.
    """
    if _compiled(x):
        out = torch.empty_like(x) if onto is None else onto
        _call("dropout", x, onto, float(rate), seed, out, x.numel())
        return out
    generator = torch.Generator(x.device).manual_seed(seed)
    kept = torch.empty_like(x).bernoulli_(1 - rate, generator=generator).mul_(x).div_(1 - rate)
    return kept if onto is None else onto.add_(kept)


def swiglu_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of gate and up, and the forward's output again."""
    if _compiled(gate):
        results = (torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate))
        _call("swiglu_backward", gate, up, grad, *results, gate.numel())
        return results
    return _swiglu_backward(gate, up, grad)


@generated
def _swiglu_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sigmoid = gate.float().sigmoid()
    silu = gate.float() * sigmoid
    wide = grad.float()
    grad_gate = wide * up.float() * (sigmoid + silu * (1 - sigmoid))
    return (
        grad_gate.to(gate.dtype),
        (wide * silu).to(gate.dtype),
        (silu * up.float()).to(gate.dtype),
    )


def attention(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each segment, q and k turned by their positions first.

    q [tokens, heads, dim]; k, v [tokens, kv_heads, dim]; cos, sin [tokens, dim]; bounds int64
    [segments + 1]. Returns the output like q, and the log of each softmax's sum, float32
    [heads, tokens], which the gradient needs (empty where torch's operations make that).
    """
    if _compiled(q):
        out = torch.empty_like(q)
        logsumexp = torch.empty(q.shape[1], q.shape[0])
        sizes = (len(bounds) - 1, q.shape[1], k.shape[1], q.shape[2])
        _call("attention", q, k, v, cos, sin, bounds, *sizes, scale, out, logsumexp)
        return out, logsumexp
    q, k = _apply_rope(q, k, cos, sin)
    if varlen.usable(q):
        return varlen.attend(q, k, v, bounds, scale)
    return _by_segment(q, k, v, bounds, scale), q.new_empty(0)


def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    bounds: Tensor,
    scale: float,
    out: Tensor,
    logsumexp: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v; `out` and `logsumexp` are what `attention` returned."""
    if _compiled(q):
        results = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        heads, kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
        shared = torch.empty(2, heads, q.shape[0], dim) if heads != kv_heads else None
        sizes = (len(bounds) - 1, heads, kv_heads, dim)
        _call(
            "attention_backward",
            *(q, k, v, cos, sin, bounds, *sizes, scale, out, logsumexp, grad, *results, shared),
        )
        return results
    q, k = _apply_rope(q, k, cos, sin)
    if varlen.usable(q):
        own = varlen.attend_backward(grad, q, k, v, bounds, scale, out, logsumexp)
        grad_q, grad_k, grad_v = own
    else:
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
            result = _by_segment(q, k, v, bounds, scale)
        grad_q, grad_k, grad_v = torch.autograd.grad(result, (q, k, v), grad)
    return *_turned_back(grad_q, grad_k, cos, sin), grad_v.contiguous()


@generated
def _apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k [tokens, heads, dim] by rotary positions (RoFormer, Su et al. 2021)."""
    q, k = (x * cos[:, None] + _rotate_half(x) * sin[:, None] for x in (q, k))
    return q, k


@generated
def _turned_back(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `_apply_rope`, contiguous."""
    q, k = (x * cos[:, None] - _rotate_half(x * sin[:, None]) for x in (q, k))
    return q.contiguous(), k.contiguous()


def _by_segment(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    parts = []
    for start, end in pairwise(bounds.tolist()):
        own_q, own_k, own_v = (x[:, :, start:end] for x in (q, k, v))
        parts.append(
            F.scaled_dot_product_attention(
                own_q, own_k, own_v, is_causal=True, scale=scale, enable_gqa=True
            )
        )
    return torch.cat(parts, dim=2)[0].transpose(0, 1).contiguous()


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of logits [rows, vocabulary], each row overwritten with its gradient:
    softmax minus one-hot, or zeros where the target is negative. Returns a float64 scalar.
    """
    if _compiled(logits):
        total = _call("cross_entropy", logits, targets, *logits.shape, returns=ctypes.c_double)
        return torch.tensor(total, dtype=torch.float64)
    return (_cross_entropy_in_place if logits.is_cpu else _cross_entropy)(logits, targets)


def _cross_entropy_in_place(logits: Tensor, targets: Tensor) -> Tensor:
    """One operation after another, so without the whole tensors that a formula has on the way."""
    wide, own = logits.float(), targets.clamp_min(0)[:, None]
    chosen, largest = wide.gather(-1, own), wide.amax(-1, keepdim=True)
    sums = wide.sub_(largest).exp_().sum(-1, keepdim=True)
    wide.div_(sums).scatter_add_(-1, own, torch.full_like(chosen, -1.0))
    logits.copy_(wide.masked_fill_(targets[:, None] < 0, 0.0))
    losses = sums.log() - (chosen - largest)
    return torch.where(targets >= 0, losses[:, 0], 0.0).double().sum()


@generated
def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    wide, kept = logits.float(), targets >= 0
    logsumexp = wide.logsumexp(-1, keepdim=True)
    losses = logsumexp - wide.gather(-1, targets.clamp_min(0)[:, None])
    own = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    gradient = torch.where(kept[:, None], wide.softmax(-1) - own.float(), 0.0)
    logits.copy_(gradient)
    return torch.where(kept, losses[:, 0], 0.0).double().sum()


def quantize(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [rows, size], its columns multiplied by `columns` float32, as uint8 values around 128 and
    the float32 scale of each row: x * columns ~ (values - 128) * scales[:, None].
    """
    if _compiled(x):
        values, scales = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x))
        _call("quantize", x, columns, values, scales, *x.shape)
        return values, scales
    wide = x.float() if columns is None else x.float() * columns
    scales = wide.abs().amax(-1) / 127
    values = (wide / scales.clamp_min(1e-30)[:, None]).round() + 128
    return values.to(torch.uint8), scales


def scale_rows(out: Tensor, scales: Tensor, onto: Tensor | None) -> Tensor:
    """out [rows, size] times scales [rows] float32 (+ onto), in place; returns it."""
    if _compiled(out):
        _call("scale_rows", out, scales, onto, *out.shape)
        return out
    wide = out.float() * scales[:, None]
    return out.copy_(wide if onto is None else wide + onto.float())
