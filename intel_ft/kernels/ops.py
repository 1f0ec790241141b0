"""RMSNorm, SwiGLU, segment attention and cross-entropy with explicit gradients.

bf16 tensors on a CPU go to the compiled kernels where those are loaded. Anything else (float32, no
compiler, a GPU) goes through the same formula in torch operations, which become one kernel on a GPU
(kernels.inductor). The compiled kernels take contiguous tensors only; others raise ValueError.
"""

import ctypes
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.kernels import varlen
from intel_ft.kernels.build import c_value, kernels
from intel_ft.kernels.chains import ancestors, lower_right
from intel_ft.kernels.gemm.library import why_no_tiles
from intel_ft.kernels.inductor import generated

LARGEST_HEAD = 1024
"""The largest head dimension of the compiled attention."""


def call(name: str, *arguments: Any) -> None:
    """Call a compiled kernel; every kernel takes the number of threads last."""
    function = getattr(kernels().library, name)
    function.restype = None
    function(*map(c_value, arguments), ctypes.c_int(torch.get_num_threads()))


def compiled(tensor: Tensor) -> bool:
    """Whether the compiled kernels compute with this tensor."""
    return tensor.is_cpu and tensor.dtype == torch.bfloat16 and kernels().library is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / rms(x) over the last dimension; x [rows, size], weight [size]."""
    if compiled(x):
        out = torch.empty_like(x)
        call("rms_norm", x, weight, eps, out, *x.shape)
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
    """The gradient of x, all [rows, size], plus `residual`: the skip connection's gradient."""
    if compiled(x):
        out = torch.empty_like(x)
        call("rms_norm_backward", x, weight, grad, residual, eps, out, *x.shape)
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
    if compiled(gate):
        out = torch.empty_like(gate)
        call("swiglu", gate, up, out, gate.numel())
        return out
    return _swiglu(gate, up)


@generated
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def dropout(x: Tensor, rate: float, seed: int, accumulate_into: Tensor | None = None) -> Tensor:
    """x with each element set to 0 with probability `rate` and the others divided by 1 - rate.

    The result is added to `accumulate_into` in place where that is given. Seed (below 2^32) and
    shape decide which elements are set to 0.
    """
    if compiled(x):
        out = torch.empty_like(x) if accumulate_into is None else accumulate_into
        call("dropout", x, accumulate_into, float(rate), seed, out, x.numel())
        return out
    generator = torch.Generator(x.device).manual_seed(seed)
    kept = torch.empty_like(x).bernoulli_(1 - rate, generator=generator).mul_(x).div_(1 - rate)
    return kept if accumulate_into is None else accumulate_into.add_(kept)


def swiglu_backward(
    gate: Tensor, up: Tensor, grad: Tensor, *, in_place: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of gate and up, and the output of the forward once more.

    in_place: gate, up and grad are not needed any more, and where C++ computes this, the three
    results overwrite them.
    """
    if compiled(gate):
        results = (gate, up, grad) if in_place else (torch.empty_like(gate) for _ in range(3))
        grad_gate, grad_up, out = results
        call("swiglu_backward", gate, up, grad, grad_gate, grad_up, out, gate.numel())
        return grad_gate, grad_up, out
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
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    bounds: Tensor,
    parents: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Causal attention of each segment, after rotating q and k by their positions.

    A segment attends to itself and to the segments that it follows. q [tokens, heads, dim]; k, v
    [tokens, kv_heads, dim]; cos, sin [tokens, dim], or None where q and k have been rotated;
    bounds, parents: see kernels.chains. Returns the output like q, and the logsumexp of the scores,
    float32 [heads, tokens], which the gradient needs (empty where torch operations compute that).
    """
    if compiled(q):
        out = torch.empty_like(q)
        logsumexp = torch.empty(q.shape[1], q.shape[0])
        segments, (heads, dim), kv_heads = len(bounds) - 1, q.shape[1:], k.shape[1]
        sizes = segments, heads, kv_heads, dim
        on_tiles = _attention_on_tiles(dim)
        call(
            "attention", q, k, v, cos, sin, bounds, parents, *sizes, scale, out, logsumexp, on_tiles
        )
        return out, logsumexp
    if cos is not None and sin is not None:
        q, k = _apply_rope(q, k, cos, sin)
    if varlen.usable(q):
        return varlen.attend(q, k, v, bounds, parents, scale)
    return _by_segment(q, k, v, bounds, parents, scale), q.new_empty(0)


def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    bounds: Tensor,
    parents: Tensor | None,
    scale: float,
    out: Tensor,
    logsumexp: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v; `out` and `logsumexp` are what `attention` returned."""
    if compiled(q):
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        segments, (tokens, heads, dim), kv_heads = len(bounds) - 1, q.shape, k.shape[1]
        shared = torch.empty(2, heads, tokens, dim) if heads != kv_heads else None
        inputs = q, k, v, cos, sin, bounds, parents, segments, heads, kv_heads, dim, scale
        on_tiles = _attention_on_tiles(dim)
        call("attention_backward", *inputs, out, logsumexp, grad, *grads, shared, on_tiles)
        return grads
    if cos is not None and sin is not None:
        q, k = _apply_rope(q, k, cos, sin)
    if varlen.usable(q):
        grad_q, grad_k, grad_v = varlen.attend_backward(
            grad, q, k, v, bounds, parents, scale, out, logsumexp
        )
    else:
        with torch.enable_grad():
            q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
            result = _by_segment(q, k, v, bounds, parents, scale)
        grad_q, grad_k, grad_v = torch.autograd.grad(result, (q, k, v), grad)
    if cos is not None and sin is not None:
        grad_q, grad_k = _apply_rope_backward(grad_q, grad_k, cos, sin)
    return grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous()


def _attention_on_tiles(dim: int) -> int:
    """Whether attention's matmuls use AMX tiles themselves; else torch's brgemm computes them."""
    return int(dim % 32 == 0 and why_no_tiles() is None)


def why_no_chains(device: torch.device) -> str | None:
    """Why attention in bf16 on `device` is wrong where segments follow others, or None.

    It runs a row of a few tokens there, forward and backward, and on the CPU in float32.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = torch.randn(4, 30, 2, 16, generator=generator).to(torch.bfloat16)
    cos, sin = torch.ones(30, 16), torch.zeros(30, 16)
    row = torch.tensor([0, 11, 18, 30]), torch.tensor([-1, 0, 0]), 0.25

    def results(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        inputs = q, k, v, cos, sin, grad
        one, two, three, turn, other_turn, of_out = (x.to(device, dtype) for x in inputs)
        given = one, two, three, turn, other_turn, *row
        out, logsumexp = attention(*given)
        return [out, *attention_backward(*given, out, logsumexp, of_out)]

    try:
        found = results(device, torch.bfloat16)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    for one, other in zip(found, results(torch.device("cpu"), torch.float32), strict=True):
        if not (one.float().cpu() - other).norm() <= 0.05 * other.norm():  # or it is NaN
            return f"attention on {device.type} is not exact for a prefix that two segments share"
    return None


@generated
def _apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q and k [tokens, heads, dim], rotated by their positions (RoFormer, Su et al. 2021)."""
    q, k = (x * cos[:, None] + _rotate_half(x) * sin[:, None] for x in (q, k))
    return q, k


@generated
def _apply_rope_backward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of `_apply_rope`, contiguous."""
    q, k = (x * cos[:, None] - _rotate_half(x * sin[:, None]) for x in (q, k))
    return q.contiguous(), k.contiguous()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, backward: bool = False) -> Tensor:
    """x [tokens, heads, dim] cos + rotate_half(x) sin, cos and sin [tokens, dim], or its gradient.

    For what the compiled kernels take.
    """
    out = torch.empty_like(x)
    call("rotate", x, cos, sin, *x.shape, int(backward), out)
    return out


def _by_segment(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, parents: Tensor | None, scale: float
) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    outputs = []
    for (start, end), before in zip(
        pairwise(bounds.tolist()), ancestors(bounds, parents), strict=True
    ):
        keys, values, mask = k[:, :, start:end], v[:, :, start:end], None
        if before is not None:
            places = before.to(k.device)
            keys = torch.cat((k[:, :, places], keys), dim=2)
            values = torch.cat((v[:, :, places], values), dim=2)
            mask = lower_right(end - start, keys.shape[2], q.device)
        outputs.append(
            F.scaled_dot_product_attention(
                query=q[:, :, start:end],
                key=keys,
                value=values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=True,
            )
        )
    return torch.cat(outputs, dim=2)[0].transpose(0, 1).contiguous()


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each row of logits [rows, vocabulary], float32 [rows].

    Its gradient overwrites the row: softmax minus one-hot. Both are zero where the target is
    negative.
    """
    if compiled(logits):
        losses = torch.empty(len(logits))
        call("cross_entropy", logits, targets, losses, *logits.shape)
        return losses
    return (_cross_entropy_in_place if logits.is_cpu else _cross_entropy)(logits, targets)


def _cross_entropy_in_place(logits: Tensor, targets: Tensor) -> Tensor:
    """In-place operations, which need less memory than the formula's temporaries."""
    wide, columns = logits.float(), targets.clamp_min(0)[:, None]
    target_logits, largest = wide.gather(-1, columns), wide.amax(-1, keepdim=True)
    sums = wide.sub_(largest).exp_().sum(-1, keepdim=True)
    wide.div_(sums).scatter_add_(-1, columns, torch.full_like(target_logits, -1.0))
    logits.copy_(wide.masked_fill_(targets[:, None] < 0, 0.0))
    losses = sums.log() - (target_logits - largest)
    return torch.where(targets >= 0, losses[:, 0], 0.0)


@generated
def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    wide, kept = logits.float(), targets >= 0
    logsumexp = wide.logsumexp(-1, keepdim=True)
    losses = logsumexp - wide.gather(-1, targets.clamp_min(0)[:, None])
    one_hot = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    gradient = torch.where(kept[:, None], wide.softmax(-1) - one_hot.float(), 0.0)
    logits.copy_(gradient)
    return torch.where(kept, losses[:, 0], 0.0)


def quantize(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [rows, size] times `columns` float32 [size], rounded to 8 bits with one scale for each row.

    Returns uint8 values and float32 scales: x * columns ~ (values - 128) * scales[:, None].
    """
    if compiled(x):
        values, scales = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x))
        call("quantize", x, columns, values, scales, *x.shape)
        return values, scales
    wide = x.float() if columns is None else x.float() * columns
    scales = wide.abs().amax(-1) / 127
    values = (wide / scales.clamp_min(1e-30)[:, None]).round() + 128
    return values.to(torch.uint8), scales


def scale_rows(out: Tensor, scales: Tensor, residual: Tensor | None) -> Tensor:
    """out [rows, size] times scales [rows] float32 (+ residual), in place; returns it."""
    if compiled(out):
        call("scale_rows", out, scales, residual, *out.shape)
        return out
    wide = out.float() * scales[:, None]
    return out.copy_(wide if residual is None else wide + residual.float())


def dequantize(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    shape: tuple[int, int],
    *,
    bits: int,
    signed: bool,
    dtype: torch.dtype,
) -> Tensor:
    """(codes - zeros) * scales as `dtype` [out, in], with one scale and zero for each group.

    codes: uint8, flat, of 4 bits two a byte with the first in the low half; scales: float16
    [out, groups]; zeros: uint8 [out, groups] or None.
    """
    rows, size = shape
    groups = scales.shape[1]
    out = torch.empty(shape, dtype=dtype)
    if compiled(out):
        sizes = rows, size, size // groups, bits, int(signed)
        call("dequantize", codes, scales, zeros, out, *sizes)
        return out
    values = torch.stack((codes & 15, codes >> 4), -1) if bits == 4 else codes
    integers = values.view(rows, groups, -1).to(torch.int16)
    if signed:
        half = 1 << (bits - 1)
        integers = (integers ^ half) - half
    if zeros is not None:
        integers = integers - zeros[..., None]
    return out.copy_((integers.float() * scales[..., None].float()).view(shape))
