"""What a step costs: the floating-point operations it needs and the memory a run takes at least;
called from training.

Operations follow DESIGN's definition of MFU: frozen linear layers 2N forward and 2N backward a
token, causal attention over real segments, logits at supervised tokens, LoRA. What is recomputed
or padded is not needed and does not count.
"""

from dataclasses import dataclass
from typing import Any

import torch

from intel_ft.batching.row import Row
from intel_ft.models.adapter import is_linear


@dataclass(frozen=True)
class StepCost:
    """Operations per unit of work for one model with its adapter.

    linear: a token; attention: a token squared of a segment; logits: a supervised token.
    """

    linear: float
    attention: float
    logits: float

    def flops(self, row: Row) -> float:
        """Floating-point operations that forward and backward of this row need."""
        lengths = row.segment_lengths
        return (
            self.linear * float(lengths.sum())
            + self.attention * float((lengths**2).sum())
            + self.logits * len(row.targets)
        )

    @property
    def quadratic_cost(self) -> float:
        """Attention's share of an example's cost, per token squared, a token's linear cost 1."""
        return self.attention / self.linear


def step_cost(model: Any) -> StepCost:
    """The cost of `model`, a base with LoRA weights or one whose weights all train."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    of_head = {id(module) for module in (head.modules() if head is not None else ())}
    frozen = trained = 0
    for module in model.modules():
        if id(module) in of_head or not is_linear(module):
            continue
        if module.weight.requires_grad:
            trained += module.weight.numel()
        else:
            frozen += module.weight.numel()
    experts_frozen, experts_trained = expert_weights(model)
    frozen, trained = frozen + experts_frozen, trained + experts_trained
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Causal scores and values: 2 products, half of 2 L^2 d each, forward; twice that backward.
    attention = 6.0 * config.num_hidden_layers * heads * head_dim
    return StepCost(
        linear=4.0 * frozen + 6.0 * trained,
        attention=attention,
        logits=(6.0 if head_trains(head) else 4.0) * config.hidden_size * config.vocab_size,
    )


def expert_weights(model: Any) -> tuple[int, int]:
    """The weights, frozen and trained, that a token meets in mixtures of experts. Transformers
    keeps them as parameters of three dimensions, a slice an expert.
    """
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    counts = [0, 0]
    for module in model.modules() if chosen else ():
        for weight in module.parameters(recurse=False):
            if weight.dim() == 3 and not isinstance(module, torch.nn.Conv1d):
                counts[weight.requires_grad] += weight.numel() // weight.shape[0] * chosen
    return counts[0], counts[1]


def head_trains(head: Any) -> bool:
    """Whether the output embeddings have weights that train."""
    return head is not None and any(weight.requires_grad for weight in head.parameters())


def with_teacher(student: StepCost, teacher: StepCost) -> StepCost:
    """The cost of a step in which a frozen teacher reads the same rows, forward only."""
    return StepCost(
        linear=student.linear + teacher.linear / 2,
        attention=student.attention + teacher.attention / 3,
        logits=student.logits + teacher.logits / 2,
    )


def activation_bytes(config: Any, tokens: int, checkpointing: bool) -> int:
    """About what one row's activations take, in bytes: enough to refuse a hopeless run early.

    Per token and layer about 6 hidden-sized and 2 intermediate-sized bf16 tensors are kept for
    backward (models.fused; other layers keep more); checkpointing keeps one hidden-sized tensor a
    layer and one layer's worth.
    """
    text = config.get_text_config()
    hidden = text.hidden_size
    intermediate = getattr(text, "intermediate_size", None) or 4 * hidden
    layer = 2 * (6 * hidden + 2 * intermediate)
    layers = text.num_hidden_layers
    kept = layers * 2 * hidden + layer if checkpointing else layers * layer
    return int(tokens * kept)
