"""Whether a decoder layer has the structure that layers.fused_decoder computes.

It looks at the names of a layer's modules, at its settings and at what trains. fused_decoder then
also runs a trial.
"""

from typing import Any

import torch

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def why_not_llama_like(block: Any) -> str | None:
    """Why a decoder layer is not of this kind, or None."""
    names = {name for name, _ in block.named_children()}
    if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
        return "its layers are not built like Llama's"
    attention, mlp = block.self_attn, block.mlp
    head_norms = {name for name, _ in attention.named_children()} - {*ATTENTION}
    if head_norms - {"q_norm", "k_norm"} or not all(hasattr(attention, n) for n in ATTENTION):
        return "its attention is not built like Llama's"
    if not all(hasattr(mlp, name) for name in MLP) or "silu" not in _activation(mlp).lower():
        return "its MLP is not SwiGLU"
    norms = [block.input_layernorm, block.post_attention_layernorm]
    norms += [getattr(attention, name) for name in sorted(head_norms)]
    if not all(hasattr(norm, "variance_epsilon") and _is_frozen(norm) for norm in norms):
        return "its norms are not RMSNorm, or are trained"
    config = attention.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "its attention has a sliding window"
    return "its layers have their own dropout" if _has_dropout(block) else None


def _has_dropout(block: Any) -> bool:
    """Whether the layer has dropout besides LoRA's, which a trial in eval mode does not show."""
    config = block.self_attn.config
    rates = [getattr(config, f"{name}_dropout", 0.0) for name in ("attention", "residual")]
    for name, module in block.named_modules():
        if isinstance(module, torch.nn.Dropout) and "lora_dropout" not in name:
            rates.append(module.p)
        rates += [value for key, value in vars(module).items() if key.endswith("_dropout")]
    return any(rates)


def _is_frozen(module: Any) -> bool:
    return not any(weight.requires_grad for weight in module.parameters())


def _activation(mlp: Any) -> str:
    return type(getattr(mlp, "act_fn", None)).__name__
