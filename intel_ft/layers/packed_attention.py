"""Attention over packed rows: each segment attends to itself and to the segments it follows.

No T x T mask exists. Registered with Transformers under `NAME`; a model loaded with that name
receives the segment bounds as the keyword argument `cu_seq_lens_q`, and which segment each one
follows as `segment_parents`; Transformers passes both to every attention layer. `why_not_packable`
and `why_not_shareable` test whether a model really works this way.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from intel_ft.host.cpu import cpu_flags
from intel_ft.kernels import ops, varlen
from intel_ft.kernels.chains import ancestors, lower_right
from intel_ft.layers.alike import first_layer_only, layers_alike

NAME = "intel_ft_packed"

SEGMENT_MULTIPLE = 32
"""Torch's attention runs on segment lengths rounded up to a multiple of this. This saves memory:
torch keeps a compiled kernel for each length it meets (docs/log.md), and a run meets thousands.
Attention is causal, so the padding after a segment's end cannot change it.
"""

ROW_MULTIPLE = 32
"""Packed rows are padded to a multiple of this: our own GEMMs compute 32 rows at once, and oneDNN's
need less than a millisecond to generate a kernel for a new length (docs/log.md)."""

COARSE_ROW_MULTIPLE = 128
"""The same with oneDNN's GEMMs on AMX, where a kernel takes 2 to 4 ms, and on a GPU."""


def padded_length(length: int, multiple: int) -> int:
    """The length that a packed row's tokens, or its supervised tokens, are padded to."""
    return -(-length // multiple) * multiple


@lru_cache
def row_multiple(device: str) -> int:
    """What rows are padded to on a device ("cpu", "cuda"), unless all GEMMs are our own on AMX."""
    slow = device != "cpu" or "amx_bf16" in cpu_flags()
    return COARSE_ROW_MULTIPLE if slow else ROW_MULTIPLE


class _NoBounds(ValueError):
    """Attention was called without the segment bounds."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor | None = None,
    segment_parents: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each segment of one packed row, by FlashAttention where possible.

    query [1, heads, tokens, head_dim]; key and value [1, kv_heads, tokens, head_dim];
    cu_seq_lens_q int [segments + 1]; segment_parents int64 [segments], the segment that each one
    follows, -1 for none; None if none does. Returns [1, tokens, heads, head_dim].
    s_aux [heads]: the logits of attention sinks (gpt-oss), which take part in each softmax.
    Raises ValueError if the segment bounds are missing.
    """
    if cu_seq_lens_q is None:
        raise _NoBounds(f"{NAME} needs cu_seq_lens_q: this model does not pass it to attention")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if varlen.usable(q) and softcap is None and s_aux is None and not dropout:
        window = sliding_window or None
        return varlen.attend(q, k, v, cu_seq_lens_q, segment_parents, scale, window)[0][None], None
    bounds = cu_seq_lens_q.to(torch.int64)
    lengths = bounds.diff().tolist()
    longest = max(lengths) if segment_parents is None else sum(lengths)
    plain = softcap is None and s_aux is None and not dropout
    if plain and _compiled(q, v) and longest <= (sliding_window or longest):
        rotated = (x.contiguous() for x in (q, k, v))
        out: Tensor = SegmentAttention.apply(*rotated, bounds, segment_parents, scale)  # type: ignore[no-untyped-call]
        return out[None], None
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    outputs = []
    # Split, not sliced: the gradient of each slice would be a tensor as large as the row.
    split = (x.split_with_sizes(lengths, dim=2) for x in (query, key, value))
    segments = zip(*split, strict=True)
    chains = ancestors(cu_seq_lens_q, segment_parents)
    for own, parts, before in zip(lengths, segments, chains, strict=True):
        q, k, v = (F.pad(x, (0, 0, 0, -own % SEGMENT_MULTIPLE)) for x in parts)
        length, mask = q.shape[2], None
        window = sliding_window if sliding_window and sliding_window < length else None
        if before is not None:
            skipped = -len(before) % SEGMENT_MULTIPLE
            places = F.pad(before, (skipped, 0)).to(key.device)
            k, v = (torch.cat((x[:, :, places], part), 2) for x, part in ((key, k), (value, v)))
            window = sliding_window or None
            mask = lower_right(length, k.shape[2], q.device, window=window, skipped=skipped)
        elif window is not None:
            mask = lower_right(length, length, q.device, window=window)
        if softcap is not None:
            output = _softcapped(q, k, v, scaling, dropout, mask, softcap)
        elif s_aux is not None:
            output = _with_sinks(q, k, v, scaling, dropout, mask, s_aux)
        else:
            output = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
            )
        outputs.append(output[:, :, :own].transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _compiled(q: Tensor, v: Tensor) -> bool:
    """Whether the compiled kernels compute the attention of q, v [tokens, heads, dim]."""
    dim = q.shape[-1]
    return ops.compiled(q) and dim == v.shape[-1] and dim % 2 == 0 and dim <= ops.LARGEST_HEAD


class SegmentAttention(torch.autograd.Function):
    """`ops.attention` of rotated q [tokens, heads, dim], k and v [tokens, kv_heads, dim]."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bounds: Tensor,
        parents: Tensor | None,
        scale: float,
    ) -> Tensor:
        """The output, like q."""
        out, logsumexp = ops.attention(q, k, v, None, None, bounds, parents, scale)
        ctx.save_for_backward(q, k, v, bounds, parents, out, logsumexp)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v."""
        q, k, v, bounds, parents, out, logsumexp = ctx.saved_tensors
        grads = ops.attention_backward(
            q,
            k,
            v,
            None,
            None,
            bounds,
            parents,
            ctx.scale,
            out,
            logsumexp,
            gradients[0].contiguous(),
        )
        return *grads, None, None, None


def _softcapped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    dropout: float,
    mask: Tensor | None,
    softcap: float,
) -> Tensor:
    """Attention with scores capped by softcap * tanh(scores / softcap), as in Gemma 2."""
    if mask is None:
        mask = lower_right(q.shape[2], k.shape[2], q.device)
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    scores = torch.tanh((q @ k.transpose(-1, -2)).float() * (scale / softcap)) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(-1), p=dropout)
    return weights.to(v.dtype) @ v


def _with_sinks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    dropout: float,
    mask: Tensor | None,
    sinks: Tensor,
) -> Tensor:
    """Attention whose softmax has one more logit in each head, the sink, without a value.

    The sink is a token before the first one, whose value is 0. A few more dimensions give its key
    the product `sinks` with every query, so that torch's attention without an L x L matrix does it;
    two of them hold the logit in high and low bits, because one would round it to the dtype of k.
    """
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    logit = sinks.float() / scale
    high = logit.to(k.dtype)
    low = (logit - high.float()).to(k.dtype)
    ones = q.new_ones(*q.shape[:-1], 2)
    q = F.pad(torch.cat((q, ones), dim=-1), (0, _SINK_DIMS - 2, 1, 0))
    sink = F.pad(torch.stack((high, low), dim=-1), (k.shape[-1], _SINK_DIMS - 2))
    k = torch.cat((sink[None, :, None], F.pad(k, (0, _SINK_DIMS))), dim=2)
    if mask is not None:  # the sink is visible to all; what its own query sees is not used
        mask = F.pad(mask, (1, 0, 1, 0), value=True)
    output = F.scaled_dot_product_attention(
        q,
        k,
        F.pad(v, (0, _SINK_DIMS, 1, 0)),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scale,
    )
    return output[:, :, 1:, : v.shape[-1]]


_SINK_DIMS = 8  # a multiple of what kernels like, of which two are used


AttentionInterface.register(NAME, packed_attention)


def row_inputs(
    tokens: Tensor, positions: Tensor, bounds: Tensor, parents: Tensor | None = None
) -> dict[str, Any]:
    """Keyword arguments for a forward over one packed row: 1-D tensors in, a batch of one out."""
    inputs = {
        "input_ids": tokens[None],
        "position_ids": positions[None],
        "cu_seq_lens_q": bounds,
        "use_cache": False,
    }
    return inputs if parents is None else {**inputs, "segment_parents": parents}


def has_convolution(model: Any) -> bool:
    """Whether its layers convolve neighbouring tokens, which packing would mix (Mamba, LFM 2)."""
    return any(isinstance(module, torch.nn.Conv1d) for module in model.get_decoder().modules())


def pass_segments(model: Any) -> None:
    """Give attention the segments' bounds and parents that its layer receives and keeps.

    As in Nemotron of Transformers 5.17. The hooks are the layers' own, because activation
    checkpointing runs a layer again when the rest of the model has ended.
    """
    for layer in model.get_decoder().layers:
        for attention in layer.modules():
            if hasattr(attention, "is_causal"):
                segments: dict[str, Any] = {}
                layer.register_forward_pre_hook(partial(_take_segments, segments), with_kwargs=True)
                attention.register_forward_pre_hook(
                    partial(_add_segments, segments), with_kwargs=True
                )


def _take_segments(segments: dict[str, Any], _: Any, __: Any, options: dict[str, Any]) -> None:
    segments |= {name: options.get(name) for name in ("cu_seq_lens_q", "segment_parents")}


def _add_segments(segments: dict[str, Any], _: Any, inputs: Any, options: dict[str, Any]) -> Any:
    return inputs, segments | options


def why_not_packable(model: Any) -> str | None:
    """Why `model`, loaded with attention NAME, mixes packed segments; None if it does not.

    Where its layers keep the segment bounds for themselves, its attention gets them by hooks.
    It runs two short segments packed, then with another first segment, then the second one alone:
    nothing may leak, and packing may change the result by no more than rounding.
    """
    return _tried(model, _why_not_packable)


def why_not_shareable(model: Any) -> str | None:
    """Why `model`, which takes packed rows, cannot compute a common beginning once; None if it can.

    It runs two sequences with a common beginning packed, and as a row that has the beginning once.
    """
    return _tried(model, _why_not_shareable)


@torch.no_grad()
def _tried(model: Any, why_not: Callable[[Any, Any], str | None]) -> str | None:
    """The trial's result with the first layer if all are alike; a failure is checked with all."""
    if layers_alike(model):

        def call(**inputs: Any) -> Any:
            with first_layer_only(model):
                try:
                    return model(**inputs)
                except (AttributeError, LookupError, RuntimeError) as error:
                    raise ValueError(f"{type(error).__name__}: {error}") from error

        if why_not(model, call) is None:
            return None
    return why_not(model, model)


def _why_not_packable(model: Any, call: Any) -> str | None:
    vocabulary = model.config.get_text_config().vocab_size
    first, other, second = ((torch.arange(n) * 7 + n) % vocabulary for n in (5, 5, 7))
    other = (other + 11) % vocabulary

    def logits(*segments: Tensor) -> Tensor:
        lengths = torch.tensor([len(segment) for segment in segments])
        inputs = row_inputs(
            torch.cat(segments),
            torch.cat([torch.arange(len(segment)) for segment in segments]),
            F.pad(lengths.cumsum(0), (1, 0)),
        )
        result: Tensor = call(**inputs).logits[0, -len(second) :].float()
        return result

    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return "its attention is chunked (attention_chunk_size)"
    if has_convolution(model):
        return "a convolution in its layers mixes neighbouring tokens of two segments"
    try:
        try:
            packed = logits(first, second)
        except _NoBounds:
            pass_segments(model)
            packed = logits(first, second)
        changed, alone = logits(other, second), logits(second)
    except (ValueError, TypeError) as error:
        return str(error).splitlines()[0]
    # Not bit for bit: a mixture's experts batch tokens of several segments in one GEMM.
    experts = any(weight.dim() == 3 for weight in model.parameters())
    if (packed - changed).norm() > (0.05 if experts else 0.001) * alone.norm():
        return "a segment's logits depend on another segment's tokens"
    if (packed - alone).norm() > 0.05 * alone.norm():
        return "a segment's logits depend on its position in the row"
    return None


def _why_not_shareable(model: Any, call: Any) -> str | None:
    vocabulary = model.config.get_text_config().vocab_size
    begin, one, other = ((torch.arange(n) * 5 + n) % vocabulary for n in (6, 4, 7))
    lengths = [len(begin) + len(one), len(begin) + len(other)]
    device = model.device
    packed = row_inputs(
        torch.cat((begin, one, begin, other)).to(device),
        torch.cat([torch.arange(length) for length in lengths]).to(device),
        torch.tensor([0, lengths[0], sum(lengths)]),
    )
    shared = row_inputs(
        torch.cat((begin, one, other)).to(device),
        torch.cat([torch.arange(lengths[0]), torch.arange(len(begin), lengths[1])]).to(device),
        torch.tensor([0, len(begin), lengths[0], lengths[0] + len(other)]),
        torch.tensor([-1, 0, 0]),
    )
    try:
        expected, found = (call(**inputs).logits[0].float() for inputs in (packed, shared))
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error).splitlines()[0]
    expected = torch.cat((expected[: lengths[0]], expected[lengths[0] + len(begin) :]))
    if not (found - expected).norm() <= 0.05 * expected.norm():  # or it is NaN
        return "a trial of two sequences with a shared prefix gave a different result"
    return None
