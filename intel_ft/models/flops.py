"""The floating-point operations that a training step needs.

They follow the definition of MFU in docs/performance.md: frozen linear layers 2N forward and 2N
backward per token, causal attention over real segments, logits at supervised tokens, LoRA.
Recomputation and padding are not needed and do not count.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper

from intel_ft.batching.row import Row
from intel_ft.models.targets import is_linear, own_layer


@dataclass(frozen=True)
class StepCost:
    """Operations per unit of work for one model with its adapter.

    linear: per token; attention: per squared token of a segment (batching.row.Row.squares);
    logits: per supervised token.
    """

    linear: float
    attention: float
    logits: float

    def flops(self, row: Row) -> float:
        """Floating-point operations that forward and backward of this row need."""
        return (
            self.linear * len(row.tokens)
            + self.attention * row.squares
            + self.logits * len(row.targets)
        )

    @property
    def quadratic_cost(self) -> float:
        """The cost of attention per squared token, in units of a token's linear cost."""
        return self.attention / self.linear


def step_cost(model: Any) -> StepCost:
    """The cost of `model`, a base with LoRA weights or one whose weights all train."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    head_modules = {id(module) for module in (head.modules() if head is not None else ())}
    frozen = trained = 0
    of_experts = {
        id(part)
        for module in model.modules()
        if isinstance(module, ParamWrapper) and module.num_experts > 1
        for part in (*module.lora_A.values(), *module.lora_B.values())
    }
    for module in model.modules():
        if id(module) in head_modules or id(module) in of_experts or not is_linear(module):
            continue
        if module.weight.requires_grad:
            trained += module.weight.numel()
        else:
            frozen += module.weight.numel()
    experts_frozen, experts_trained = expert_weights(model)
    frozen, trained = frozen + experts_frozen, trained + experts_trained
    heads = getattr(config, "num_attention_heads", 0)  # Mamba has none
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    # Causal scores and values: 2 GEMMs, half of 2 L^2 d each, forward; twice that backward. The two
    # have different dimensions in latent attention (DeepSeek).
    value_dim = getattr(config, "v_head_dim", None) or head_dim
    parts = (getattr(config, f"qk_{part}_head_dim", None) or 0 for part in ("nope", "rope"))
    query_dim = sum(parts) or head_dim
    attention = 3.0 * config.num_hidden_layers * heads * (query_dim + value_dim)
    return StepCost(
        linear=4.0 * frozen + 6.0 * trained,
        attention=attention,
        logits=_logits_cost(config, head),
    )


def _logits_cost(config: Any, head: Any) -> float:
    """Per supervised token; 0 for a reward model, which has no logits."""
    if head is None:
        return 0.0
    return (6.0 if head_trains(head) else 4.0) * float(config.hidden_size * config.vocab_size)


def expert_weights(model: Any) -> tuple[int, int]:
    """The weights of mixtures of experts, frozen and trained, that one token uses.

    Transformers keeps them as parameters of three dimensions, one slice per expert. LoRA's are
    trained ones.
    """
    active, counts = active_experts(model.config), [0, 0]
    for module in model.modules() if active else ():
        for weight in module.parameters(recurse=False):
            if weight.dim() == 3 and not isinstance(module, torch.nn.Conv1d):
                counts[weight.requires_grad] += weight.numel() // weight.shape[0] * active
        if isinstance(module, ParamWrapper) and module.num_experts > 1:
            lora = (*module.lora_A.values(), *module.lora_B.values())
            counts[1] += sum(part.weight.numel() for part in lora) // module.num_experts * active
    return counts[0], counts[1]


def active_experts(config: Any) -> int:
    """How many experts a token meets in each mixture of a model; 0 for a model without one."""
    text = config.get_text_config()
    names = ("num_experts_per_tok", "moe_k", "top_k_experts")
    return next((value for name in names if (value := getattr(text, name, None))), 0)


def head_trains(head: Any) -> bool:
    """Whether the output embeddings train as a whole, not only the rows of new tokens."""
    head = own_layer(head)
    return head is not None and any(weight.requires_grad for weight in head.parameters())


def with_teacher(student: StepCost, teacher: StepCost) -> StepCost:
    """The cost of a step in which a frozen teacher reads the same rows, forward only."""
    return StepCost(
        linear=student.linear + teacher.linear / 2,
        attention=student.attention + teacher.attention / 3,
        logits=student.logits + teacher.logits / 2,
    )
