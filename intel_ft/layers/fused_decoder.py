"""A whole decoder layer with LoRA as one autograd function, its gradient written out.

For layers built like Llama's (Llama, Mistral, Qwen 2 and 3 and similar): RMSNorm, attention with
rotary positions, RMSNorm, SwiGLU, and frozen linear layers with or without LoRA.

A worked example with T tokens in packed segments, size 2048, 32 query heads and 8 key heads of
dimension 64, intermediate size 8192, LoRA rank r; W(x) is a linear layer, which also computes its
`lora_a_out` = dropout(x) A^T [T, r]; R is the rotation by positions:

    x1 = rmsnorm(hidden)                            [T, 2048]
    q, k, v = Wq(x1), Wk(x1), Wv(x1)                [T, 2048], [T, 512], [T, 512]
    attended = attention(R q, R k, v)               [T, 32, 64], and logsumexp [32, T]
    middle = hidden + Wo(attended)                  [T, 2048]
    x2 = rmsnorm(middle)                            [T, 2048]
    gate, up = Wgate(x2), Wup(x2)                   [T, 8192] each
    out = middle + Wdown(silu(gate) * up)           [T, 2048]

Saved for backward is what is expensive to recompute: hidden, q, k, v, attended, logsumexp, middle,
gate, up and the seven `lora_a_out`. Recomputed are x1, x2 and silu(gate) * up. Backward, for the
gradient g of out, accumulates the input gradients of layers that share an input in place:

    g_gate, g_up = swiglu_backward(gate, up, g Wdown)
    g_middle = g + rmsnorm_backward(middle, g_gate Wgate + g_up Wup)
    g_q, g_k, g_v = attention_backward(g_middle Wo)
    g_hidden = g_middle + rmsnorm_backward(hidden, g_q Wq + g_k Wk + g_v Wv)

and for each linear layer with output gradient g: grad_A = (g B)^T dropout(x), grad_B = g^T
lora_a_out, both with LoRA's scale. In the last layer everything after attention is computed for
the tokens in `keep` only, since no other token's output is used.
"""

from dataclasses import dataclass
from itertools import chain
from types import MethodType
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from peft import PeftModel
from torch import Tensor

from intel_ft.kernels import ops
from intel_ft.kernels.gemm.tiles import Activations
from intel_ft.layers.alike import layers_alike
from intel_ft.layers.llama_like import ATTENTION, MLP, why_not_llama_like
from intel_ft.layers.lora_linear import (
    LoraLinear,
    LoraStep,
    backward_of_shared,
    forward_of_shared,
    is_active,
    linear_of,
    start_steps,
)

T = TypeVar("T")


class Linears(NamedTuple, Generic[T]):
    """One value for each linear layer; LoRA weights and their gradients come in this order."""

    q: T
    k: T
    v: T
    o: T
    gate: T
    up: T
    down: T


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer as data."""

    linears: Linears[LoraLinear]
    norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    middle_norm: Tensor
    eps: float
    head_dim: int
    scale: float

    def split_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as [tokens, heads, head_dim], q and k normalized where the model does that."""
        return self._heads(q, self.q_norm), self._heads(k, self.k_norm), self._heads(v, None)

    def _heads(self, x: Tensor, norm: Tensor | None) -> Tensor:
        tokens = len(x)
        if norm is not None:
            x = ops.rms_norm(x.view(-1, self.head_dim), norm, self.eps)
        return x.view(tokens, -1, self.head_dim)

    def head_norm_backward(self, x: Tensor, norm: Tensor | None, grad: Tensor) -> Tensor:
        """The gradient of x [tokens, heads * head_dim], from that of its normalized heads."""
        if norm is not None:
            heads = x.view(-1, self.head_dim)
            grad = ops.rms_norm_backward(heads, norm, grad.view_as(heads), self.eps)
        return grad.view_as(x)


class DecoderLayer(torch.autograd.Function):
    """hidden [tokens, size] -> [tokens, size] of a packed row, or [kept, size] in the last layer.

    cos, sin [tokens, head_dim] in the dtype of hidden; bounds, parents: see kernels.chains; keep:
    None, or int64 [kept], the tokens whose output is used, distinct unless there are parents. The
    LoRA weights are arguments only to make autograd call backward for them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        bounds: Tensor,
        parents: Tensor | None,
        keep: Tensor | None,
        layer: Layer,
        *_: Tensor,
    ) -> Tensor:
        """The layer's output."""
        steps = Linears(*start_steps(layer.linears))
        (q, k, v), qkv_a_outs = forward_of_shared(
            (steps.q, steps.k, steps.v), Activations(hidden, norm=layer.norm, eps=layer.eps)
        )
        attended, logsumexp = ops.attention(
            *layer.split_heads(q, k, v), cos, sin, bounds, parents, layer.scale
        )
        flat = attended.view(len(hidden), -1)
        if keep is not None:
            flat = flat[keep]
        [middle], [o_a_out] = forward_of_shared(
            [steps.o], Activations(flat), residual=hidden if keep is None else hidden[keep]
        )
        (gate, up), gate_up_a_outs = forward_of_shared(
            (steps.gate, steps.up), Activations(middle, norm=layer.middle_norm, eps=layer.eps)
        )
        [out], [down_a_out] = forward_of_shared(
            [steps.down], Activations(gate, up=up), residual=middle
        )
        ctx.layer, ctx.steps = layer, steps
        inputs = hidden, cos, sin, bounds, parents, keep
        lora_a_outs = *qkv_a_outs, o_a_out, *gate_up_a_outs, down_a_out
        ctx.save_for_backward(*inputs, q, k, v, attended, logsumexp, middle, gate, up, *lora_a_outs)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of each LoRA weight, from the layer's end to its start."""
        layer: Layer = ctx.layer
        steps: Linears[LoraStep] = ctx.steps
        # Once: activation checkpointing allows no second access.
        hidden, cos, sin, bounds, parents, keep, *rest = ctx.saved_tensors
        q, k, v, attended, logsumexp, middle, gate, up, *rest = rest
        lora_a_outs = Linears(*rest)

        grad = gradients[0].contiguous()
        grad_activated, grad_a_out = steps.down.input_gradients(grad)
        # In place: autograd keeps gate and up, the largest that forward saved, until this returns.
        grad_gate, grad_up, activated = ops.swiglu_backward(gate, up, grad_activated, in_place=True)
        del grad_activated
        down_grads = steps.down.lora_gradients(grad, grad_a_out, activated, lora_a_outs.down)
        x2 = ops.rms_norm(middle, layer.middle_norm, layer.eps)
        grad_x2, (gate_grads, up_grads) = backward_of_shared(
            (steps.gate, steps.up), (grad_gate, grad_up), x2, (lora_a_outs.gate, lora_a_outs.up)
        )
        del gate, up, grad_gate, grad_up, activated
        assert grad_x2 is not None  # it is needed
        grad = ops.rms_norm_backward(middle, layer.middle_norm, grad_x2, layer.eps, residual=grad)
        del x2, grad_x2

        flat = attended.view(len(hidden), -1)
        grad_attended, o_grads = steps.o.backward(
            grad, flat if keep is None else flat[keep], lora_a_outs.o
        )
        if keep is not None:
            grad, grad_attended = (
                _scatter(part, keep, len(hidden), distinct=parents is None)
                for part in (grad, grad_attended)
            )
        grad_q, grad_k, grad_v = ops.attention_backward(
            *layer.split_heads(q, k, v),
            cos,
            sin,
            bounds,
            parents,
            layer.scale,
            attended,
            logsumexp,
            grad_attended.view_as(attended),
        )
        grad_q = layer.head_norm_backward(q, layer.q_norm, grad_q)
        grad_k = layer.head_norm_backward(k, layer.k_norm, grad_k)
        grad_v = grad_v.view_as(v)

        x1 = ops.rms_norm(hidden, layer.norm, layer.eps)
        grad_x1, qkv_grads = backward_of_shared(
            (steps.q, steps.k, steps.v),
            (grad_q, grad_k, grad_v),
            x1,
            (lora_a_outs.q, lora_a_outs.k, lora_a_outs.v),
            needs_input_gradient=ctx.needs_input_grad[0],
        )
        grad_hidden = None
        if grad_x1 is not None:
            grad_hidden = ops.rms_norm_backward(
                hidden, layer.norm, grad_x1, layer.eps, residual=grad
            )
        lora_grads = (*chain(*qkv_grads), *o_grads, *gate_grads, *up_grads, *down_grads)
        return grad_hidden, None, None, None, None, None, None, *lora_grads


def _scatter(part: Tensor, places: Tensor, tokens: int, *, distinct: bool) -> Tensor:
    """Zeros [tokens, size] with the rows of `part` at `places`; those of one place are summed."""
    whole = part.new_zeros(tokens, part.shape[1])
    if distinct:
        return whole.index_copy_(0, places, part)
    return whole.index_add_(0, places, part)


def fuse_layers(model: Any) -> str | None:
    """Replace the forward of every decoder layer of a PEFT model; returns None, or why not.

    Where all layers are alike, only the first is tried: a trial reads all of a layer's weights.
    A forward without segment bounds, as in generation, or with the adapter disabled or merged,
    still runs the model's own code.
    """
    layers = _layers_of(model)
    if isinstance(layers, str):
        return layers
    decoder = _base(model).get_decoder()
    blocks = decoder.layers
    tried = 1 if layers_alike(_base(model)) else len(blocks)  # SmolLM3 has no RoPE in every 4th
    for block, layer in zip(blocks[:tried], layers[:tried], strict=True):
        if why_not := _why_not_equal(decoder, block, layer):
            return why_not
    for block, layer in zip(blocks, layers, strict=True):
        block.forward = MethodType(_make_forward(block, layer, last=block is blocks[-1]), block)
    decoder.has_fused_layers = True
    return None


def why_not_fusable(model: Any) -> str | None:
    """Why the structure of `model`, which may be on the meta device, forbids fusing, or None."""
    layers = _layers_of(model)
    return layers if isinstance(layers, str) else None


def is_fused(model: Any) -> bool:
    """Whether `fuse_layers` replaced this model's layers."""
    return hasattr(_base(model).get_decoder(), "has_fused_layers")


def _base(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _layers_of(model: Any) -> list[Layer] | str:
    """Every decoder layer of a model, PEFT or not, as data; or why one of them is not fusable."""
    blocks = getattr(_base(model).get_decoder(), "layers", None)
    if not blocks:
        return "its decoder has no list of layers"
    layers = []
    for block in blocks:
        layer = layer_of(block)
        if isinstance(layer, str):
            return layer
        layers.append(layer)
    return layers


def layer_of(block: Any) -> Layer | str:
    """A decoder layer as data, or why this module cannot compute it."""
    if why_not := why_not_llama_like(block):
        return why_not
    attention = block.self_attn
    modules = _modules(block)
    linears = [linear for linear in map(linear_of, modules) if linear is not None]
    if len(linears) < len(modules):
        return "it has DoRA or special linear layers, which peft computes"
    q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return Layer(
        linears=Linears(*linears),
        norm=block.input_layernorm.weight,
        q_norm=None if q_norm is None else q_norm.weight,
        k_norm=None if k_norm is None else k_norm.weight,
        middle_norm=block.post_attention_layernorm.weight,
        eps=block.input_layernorm.variance_epsilon,
        head_dim=attention.head_dim,
        scale=attention.scaling,
    )


def _modules(block: Any) -> list[Any]:
    """A layer's linear modules in the order of `Linears`."""
    owned = ((block.self_attn, ATTENTION), (block.mlp, MLP))
    return [getattr(owner, name) for owner, names in owned for name in names]


@torch.no_grad()
def _why_not_equal(decoder: Any, block: Any, layer: Layer) -> str | None:
    """Run one layer both ways on random input: None if the outputs agree to rounding.

    It takes twelve tokens, so that the trials of all layers cost less than one training step.
    """
    tokens, size = 12, len(layer.norm)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, size, generator=generator).to(layer.norm)
    row = {
        "cu_seq_lens_q": torch.tensor([0, 3, 5, tokens]),
        "segment_parents": torch.tensor([-1, 0, -1]),
    }
    positions = torch.cat((torch.arange(5), torch.arange(tokens - 5)))[None].to(hidden.device)
    training = block.training
    block.eval()  # each way, dropout would drop other elements
    try:
        rotation = decoder.rotary_emb(hidden, position_ids=positions)
        expected = block(hidden, position_embeddings=rotation, **row)
        forward = _make_forward(block, layer)
        fused = forward(block, hidden, position_embeddings=rotation, **row)
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:
        return f"a trial of one layer failed ({str(error).splitlines()[0]})"
    finally:
        block.train(training)
    expected = expected[0] if isinstance(expected, tuple) else expected
    change = (expected - hidden).float()
    # For layers whose output hardly differs from their input.
    rounding = torch.finfo(expected.dtype).eps / 16 * expected.float().norm()
    if not (fused - expected).float().norm() <= 0.05 * change.norm() + rounding:  # or it is NaN
        return "a trial of one layer gave a different result"
    return None


def _make_forward(block: Any, layer: Layer, *, last: bool = False) -> Any:
    lora = [weight for linear in layer.linears for weight in linear.trained]
    modules = _modules(block)

    def forward(
        self: Any,
        hidden_states: Tensor,
        *arguments: Any,
        position_embeddings: Any = None,
        cu_seq_lens_q: Tensor | None = None,
        segment_parents: Tensor | None = None,
        last_layer_keeps: Tensor | None = None,
        **options: Any,
    ) -> Any:
        keep = last_layer_keeps if last else None
        if cu_seq_lens_q is None or position_embeddings is None or not all(map(is_active, modules)):
            out = type(self).forward(
                self,
                hidden_states,
                *arguments,
                position_embeddings=position_embeddings,
                cu_seq_lens_q=cu_seq_lens_q,
                segment_parents=segment_parents,
                **options,
            )
            return out if keep is None else out[:, keep]
        cos, sin = (x[0].to(hidden_states.dtype).contiguous() for x in position_embeddings)
        row = cos, sin, cu_seq_lens_q, segment_parents
        return DecoderLayer.apply(  # type: ignore[no-untyped-call]
            hidden_states[0].contiguous(), *row, keep, layer, *lora
        )[None]

    return forward
