"""A whole decoder layer with LoRA as one autograd function; called from models.adapter.

For layers built like Llama's: RMSNorm, attention with rotary positions, RMSNorm, SwiGLU, and linear
layers that are frozen, with or without LoRA (Llama, Mistral, Qwen 2 and 3 and their kin). Backward
keeps what is dear to compute again: the layer's input, q, k, v, the attention's output, the
residual stream between, gate and up. Norms and SwiGLU are computed again.
"""

from dataclasses import dataclass
from types import MethodType
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from peft import PeftModel
from torch import Tensor

from intel_ft.kernels import ops
from intel_ft.models.llama_like import ATTENTION, MLP, why_not_llama_like
from intel_ft.models.lora_linear import LoraLinear, LoraStep, is_active, linear_of

T = TypeVar("T")


class Linears(NamedTuple, Generic[T]):
    """One thing for each linear layer; LoRA weights and their gradients go in this order."""

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

    def heads(self, x: Tensor, norm: Tensor | None = None) -> Tensor:
        """x [tokens, heads * head_dim] by head, each normalized where the model does that."""
        tokens = len(x)
        if norm is not None:
            x = ops.rms_norm(x.view(-1, self.head_dim), norm, self.eps)
        return x.view(tokens, -1, self.head_dim)


class DecoderLayer(torch.autograd.Function):
    """hidden [tokens, size] -> [tokens, size] for one packed row, or [kept, size] for a last layer.

    cos, sin [tokens, head_dim] in the dtype of hidden; bounds int64 [segments + 1]; keep: None, or
    the tokens (each once) whose output somebody reads, int64 [kept]: what follows attention is
    computed for those only. The LoRA weights are arguments only so that autograd knows of them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        bounds: Tensor,
        keep: Tensor | None,
        layer: Layer,
        *_: Tensor,
    ) -> Tensor:
        """The layer's output."""
        run = Linears(*(linear.ready() for linear in layer.linears))
        x = ops.rms_norm(hidden, layer.norm, layer.eps)
        (q, low_q), (k, low_k), (v, low_v) = run.q.forward(x), run.k.forward(x), run.v.forward(x)
        attended, logsumexp = ops.attention(*_normed(layer, q, k, v), cos, sin, bounds, layer.scale)
        outputs = attended.view(len(x), -1)
        if keep is None:
            middle, low_o = run.o.forward(outputs, onto=hidden)
        else:
            middle, low_o = run.o.forward(outputs[keep], onto=hidden[keep])
        x = ops.rms_norm(middle, layer.middle_norm, layer.eps)
        (gate, low_gate), (up, low_up) = run.gate.forward(x), run.up.forward(x)
        out, low_down = run.down.forward(ops.swiglu(gate, up), onto=middle)
        ctx.layer, ctx.run = layer, run
        lows = Linears(low_q, low_k, low_v, low_o, low_gate, low_up, low_down)
        ctx.save_for_backward(
            *(hidden, cos, sin, bounds, keep, q, k, v, attended, logsumexp, middle, gate, up), *lows
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of each LoRA weight, walking the layer from its end."""
        layer: Layer = ctx.layer
        run: Linears[LoraStep] = ctx.run
        hidden, cos, sin, bounds, keep, q, k, v, attended, logsumexp, middle, gate, up, *lows = (
            ctx.saved_tensors
        )
        low = Linears(*lows)
        grad = gradients[0].contiguous()
        grad_b = run.down.backward_input(grad)
        grad_gate, grad_up, inner = ops.swiglu_backward(
            gate, up, run.down.input_gradient(grad, grad_b)
        )
        of_down = run.down.lora_gradients(grad, grad_b, inner, low.down)
        x = ops.rms_norm(middle, layer.middle_norm, layer.eps)
        grad_x, of_gate = run.gate.backward(grad_gate, x, low.gate)
        grad_x, of_up = run.up.backward(grad_up, x, low.up, onto=grad_x)
        del gate, up, grad_gate, grad_up, inner
        grad = ops.rms_norm_backward(middle, layer.middle_norm, grad_x, layer.eps, residual=grad)

        outputs = attended.view(len(hidden), -1)
        grad_out, of_o = run.o.backward(grad, outputs if keep is None else outputs[keep], low.o)
        if keep is not None:
            grad = torch.zeros_like(hidden).index_copy_(0, keep, grad)
            grad_out = torch.zeros_like(outputs).index_copy_(0, keep, grad_out)
        grad_q, grad_k, grad_v = ops.attention_backward(
            *_normed(layer, q, k, v),
            cos,
            sin,
            bounds,
            layer.scale,
            attended,
            logsumexp,
            grad_out.view_as(attended),
        )
        grad_q = _norm_gradient(layer, q, layer.q_norm, grad_q)
        grad_k = _norm_gradient(layer, k, layer.k_norm, grad_k)
        grad_v = grad_v.view_as(v)
        x = ops.rms_norm(hidden, layer.norm, layer.eps)
        if ctx.needs_input_grad[0]:
            grad_x, of_q = run.q.backward(grad_q, x, low.q)
            grad_x, of_k = run.k.backward(grad_k, x, low.k, onto=grad_x)
            grad_x, of_v = run.v.backward(grad_v, x, low.v, onto=grad_x)
            grad_hidden = ops.rms_norm_backward(
                hidden, layer.norm, grad_x, layer.eps, residual=grad
            )
        else:
            grad_hidden = None
            of_q = run.q.lora_gradients(grad_q, run.q.backward_input(grad_q), x, low.q)
            of_k = run.k.lora_gradients(grad_k, run.k.backward_input(grad_k), x, low.k)
            of_v = run.v.lora_gradients(grad_v, run.v.backward_input(grad_v), x, low.v)
        lora = (*of_q, *of_k, *of_v, *of_o, *of_gate, *of_up, *of_down)
        return grad_hidden, None, None, None, None, None, *lora


def _normed(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return layer.heads(q, layer.q_norm), layer.heads(k, layer.k_norm), layer.heads(v)


def _norm_gradient(layer: Layer, x: Tensor, norm: Tensor | None, grad: Tensor) -> Tensor:
    if norm is not None:
        flat = x.view(-1, layer.head_dim)
        grad = ops.rms_norm_backward(flat, norm, grad.view_as(flat), layer.eps)
    return grad.view_as(x)


def fuse_layers(model: Any) -> str | None:
    """Replace the forward of every decoder layer of a PEFT model; None, or why not.

    A forward without segment bounds, as in generation, or with the adapter disabled or merged,
    still goes the model's own way.
    """
    layers = _layers_of(model)
    if isinstance(layers, str):
        return layers
    decoder = _base(model).get_decoder()
    blocks = decoder.layers
    for block, layer in zip(blocks, layers, strict=True):  # SmolLM3 turns RoPE off in every 4th
        if why_not := _differs(decoder, block, layer):
            return why_not
    for block, layer in zip(blocks, layers, strict=True):
        block.forward = MethodType(_forward_with(block, layer, last=block is blocks[-1]), block)
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
    """A decoder layer as data, or why it is not of the kind that this module computes."""
    if why_not := why_not_llama_like(block):
        return why_not
    attention = block.self_attn
    linears = [linear_of(module) for module in _modules(block)]
    found = [linear for linear in linears if linear is not None]
    if len(found) < len(linears):
        return "DoRA or a special linear layer needs peft's own way"
    q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return Layer(
        linears=Linears(*found),
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
def _differs(decoder: Any, block: Any, layer: Layer) -> str | None:
    """Run one layer both ways on random input: None if they agree to rounding. A dozen tokens: all
    layers together cost less than a step.
    """
    tokens, size = 12, len(layer.norm)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, size, generator=generator).to(layer.norm)
    bounds = torch.tensor([0, 5, tokens])
    positions = torch.cat([torch.arange(n) for n in bounds.diff().tolist()])[None]
    positions = positions.to(hidden.device)
    training = block.training
    block.eval()  # dropout would drop other elements each way
    try:
        turns = decoder.rotary_emb(hidden, position_ids=positions)
        own = block(hidden, position_embeddings=turns, cu_seq_lens_q=bounds)
        forward = _forward_with(block, layer)
        ours = forward(block, hidden, position_embeddings=turns, cu_seq_lens_q=bounds)
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:
        return f"a trial of one layer failed ({str(error).splitlines()[0]})"
    finally:
        block.train(training)
    own = own[0] if isinstance(own, tuple) else own
    change = (own - hidden).float()
    rounding = torch.finfo(own.dtype).eps / 16 * own.float().norm()  # where a layer adds little
    if not (ours - own).float().norm() <= 0.05 * change.norm() + rounding:  # true of NaN, too
        return "a trial of one layer gave another result"
    return None


def _forward_with(block: Any, layer: Layer, *, last: bool = False) -> Any:
    lora = [weight for linear in layer.linears for weight in linear.trained]
    modules = _modules(block)

    def forward(
        self: Any,
        hidden_states: Tensor,
        *arguments: Any,
        position_embeddings: Any = None,
        cu_seq_lens_q: Tensor | None = None,
        last_layer_keeps: Tensor | None = None,
        **options: Any,
    ) -> Any:
        keep = last_layer_keeps if last else None
        if cu_seq_lens_q is None or position_embeddings is None or not all(map(is_active, modules)):
            own = type(self).forward(
                self,
                hidden_states,
                *arguments,
                position_embeddings=position_embeddings,
                cu_seq_lens_q=cu_seq_lens_q,
                **options,
            )
            return own if keep is None else own[:, keep]
        cos, sin = (x[0].to(hidden_states.dtype).contiguous() for x in position_embeddings)
        return DecoderLayer.apply(  # type: ignore[no-untyped-call]
            hidden_states[0].contiguous(), cos, sin, cu_seq_lens_q, keep, layer, *lora
        )[None]

    return forward
