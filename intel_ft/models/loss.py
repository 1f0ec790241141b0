"""The training loss of one packed row: logits only where a token is supervised; called from
training and inference.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.batching.row import IGNORED, Row, filled
from intel_ft.kernels import ops
from intel_ft.models.fused import is_fused
from intel_ft.models.packed import NAME, ROW_QUANTUM, row_inputs

CHUNK_BYTES = 32 * 2**20
"""How much of the logits exists at a time; larger gains nothing (docs/log.md)."""


def loss_sum(model: Any, row: Row, *, packed: bool) -> Tensor:
    """The summed cross-entropy over a row's supervised tokens, a float32 scalar.

    `packed` says that the model was loaded with packed attention; without it the row must hold
    one example. A bf16 base runs under autocast so that the float32 LoRA weights multiply in bf16.
    """
    if packed:
        row = filled(row, ROW_QUANTUM)
    elif len(row.bounds) != 2:
        raise ValueError(f"a model without {NAME} takes one example a row")
    tokens, positions, bounds, predict, targets = (
        torch.from_numpy(array)
        for array in (row.tokens, row.positions, row.bounds, row.predict, row.targets)
    )
    inputs = row_inputs(tokens, positions, bounds)
    if not packed:
        inputs = {"input_ids": inputs["input_ids"], "use_cache": False}
    half = model.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        if (head := plain_head(model)) is not None:
            decoder = model.get_base_model().get_decoder()
            if is_fused(model):
                hidden = decoder(**inputs, last_layer_keeps=predict).last_hidden_state[0]
            else:
                hidden = decoder(**inputs).last_hidden_state[0, predict]
            loss: Tensor = HeadLoss.apply(hidden, head, targets)  # type: ignore[no-untyped-call]
            return loss
        logits = model(**inputs, logits_to_keep=predict).logits[0]
    return F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORED)


def plain_head(model: Any) -> Tensor | None:
    """The weight [vocabulary, size] of a head whose product is the logits, with nothing after it;
    None for any other.
    """
    if not hasattr(model, "get_base_model"):
        return None
    config = model.config.get_text_config()
    special = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
    head = model.get_output_embeddings()
    plain = type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad
    if not plain or any(getattr(config, name, None) is not None for name in special):
        return None
    weight: Tensor = head.weight
    return weight


class HeadLoss(torch.autograd.Function):
    """Cross-entropy summed over hidden states, the logits made and used up in chunks.

    hidden [supervised, size], weight [vocabulary, size] frozen, targets int64 [supervised]. The
    gradient is made on the way (Liger Kernel, Hsu et al. 2024), so that logits never exist whole.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """The loss, a float32 scalar."""
        rows = max(128, CHUNK_BYTES // (weight.shape[0] * weight.element_size()) // 128 * 128)
        buffer = hidden.new_empty(min(rows, len(targets)), len(weight))
        grads = []
        total = 0.0
        for start in range(0, len(targets), rows):
            part = hidden[start : start + rows]
            logits = torch.mm(part, weight.T, out=buffer[: len(part)])
            total += ops.cross_entropy(logits, targets[start : start + rows])
            if ctx.needs_input_grad[0]:
                grads.append(logits @ weight)
        if ctx.needs_input_grad[0]:  # of a row without supervised tokens, it is empty
            ctx.save_for_backward(torch.cat(grads) if grads else torch.zeros_like(hidden))
        return torch.tensor(total, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of hidden."""
        (grad,) = ctx.saved_tensors
        return grad * gradients[0].to(grad.dtype), None, None
