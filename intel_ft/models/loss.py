"""The training loss of one packed row, with logits computed at supervised tokens only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from intel_ft.batching.row import IGNORED, Row
from intel_ft.decisions import Decision
from intel_ft.host.cpu import GIB
from intel_ft.host.file_pages import FilePages
from intel_ft.kernels import ops
from intel_ft.kernels.gemm import tiles
from intel_ft.layers.fused_decoder import is_fused
from intel_ft.layers.mapped import Keep, private
from intel_ft.layers.own_products import TileWeight, own_base
from intel_ft.models.model_inputs import ModelInputs, autocast, model_inputs
from intel_ft.models.new_tokens import rows_of
from intel_ft.models.targets import own_layer

CHUNK_BYTES = 32 * 2**20
"""The size of the chunks that logits are computed in; larger ones gain nothing (docs/log.md)."""

GPU_CHUNKS = 4  # a GPU's chunks are larger by this factor: it needs larger GEMMs to be busy


def loss_sum(model: Any, row: Row, *, packed: bool, dtype: torch.dtype | None = None) -> Tensor:
    """The summed cross-entropy over a row's supervised tokens, a float32 scalar.

    packed: whether the model was loaded with packed attention; without it the row must hold one
    example. A bf16 base runs under autocast, so that the float32 LoRA weights are used in bf16;
    dtype: the same for a model whose weights are all float32.
    """
    inputs = model_inputs(row, model, packed=packed)
    with autocast(dtype or model.dtype, model.device):
        if (losses := frozen_head_losses(model, inputs)) is not None:
            losses = losses.double()
            weighted = losses if inputs.weights is None else losses * inputs.weights
            return weighted.sum().float()
        return chunked_loss(scores(model, inputs), _label_loss(inputs))


def frozen_head_losses(model: Any, inputs: ModelInputs) -> Tensor | None:
    """The cross-entropy of each supervised token, float32 [supervised]; None without such a head.

    The head is plain and frozen, but for the rows of new tokens.
    """
    head = plain_head(model)
    parts = plain_head_with_rows(model) if head is None else (head, None, None)
    if parts is None or parts[0].requires_grad:
        return None
    weight, ids, rows = parts
    # Mamba's last norm returns float32, because its residual stream is in float32.
    hidden = hidden_states(model, inputs).to(weight.dtype)
    packed = getattr(_base(model), "packed_head", None)
    arguments = weight, inputs.targets, ids, rows, packed
    losses: Tensor = HeadLoss.apply(hidden, *arguments)  # type: ignore[no-untyped-call]
    return losses


def hidden_states(model: Any, inputs: ModelInputs) -> Tensor:
    """The head's input [supervised, size], for a model that has a `plain_head`."""
    decoder = _base(model).get_decoder()
    hidden: Tensor
    if isinstance(model, PeftModel) and is_fused(model):
        hidden = decoder(**inputs.model_kwargs, last_layer_keeps=inputs.predict)[0][0]
    else:
        hidden = Chosen.apply(decoder(**inputs.model_kwargs)[0][0], inputs.predict)  # type: ignore[no-untyped-call]
    return hidden


class Chosen(torch.autograd.Function):
    """x[rows] for x [tokens, size] and rows int64; indexing adds its gradient up one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        """The chosen rows."""
        ctx.save_for_backward(rows)
        ctx.tokens = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        (rows,) = ctx.saved_tensors
        grad = gradients[0].new_zeros(ctx.tokens, gradients[0].shape[1])
        return grad.index_add_(0, rows, gradients[0]), None


@dataclass(frozen=True)
class LazyLogits:
    """The logits at supervised tokens, computed when asked for.

    They are values [supervised, size] times weight [vocabulary, size] transposed, or the values
    themselves if weight is None.
    """

    values: Tensor
    weight: Tensor | None

    def logits(self, rows: slice) -> Tensor:
        """The logits of these supervised tokens, [rows, vocabulary]."""
        part = self.values[rows]
        return part if self.weight is None else part @ self.weight.T

    @property
    def vocabulary(self) -> int:
        """The number of logits of one token."""
        return self.values.shape[1] if self.weight is None else len(self.weight)


def scores(model: Any, inputs: ModelInputs) -> LazyLogits:
    """The logits of `model` at the supervised tokens, lazy if the model has a `plain_head`."""
    if (head := plain_head(model)) is None:
        logits = model(**inputs.model_kwargs, logits_to_keep=inputs.predict).logits[0]
        # xLSTM has no logits_to_keep and returns the logits of every token.
        return LazyLogits(
            logits if len(logits) == len(inputs.predict) else logits[inputs.predict], None
        )
    hidden = hidden_states(model, inputs)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return LazyLogits(hidden.to(dtype), head.to(dtype))


def chunked_loss(scores: LazyLogits, loss_of: "LossOf") -> Tensor:
    """The sum of `loss_of` over chunks of the logits, a float32 scalar."""
    total: Tensor = ChunkedLoss.apply(scores.values, scores.weight, loss_of)  # type: ignore[no-untyped-call]
    return total


LossOf = Callable[[Tensor, slice], Tensor]
"""(float32 logits [rows, vocabulary], which supervised tokens these are) -> their summed loss."""


def _label_loss(inputs: ModelInputs) -> LossOf:
    def loss_of(logits: Tensor, rows: slice) -> Tensor:
        return label_loss(logits, inputs.targets[rows], inputs.weights_of(rows))

    return loss_of


def label_loss(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """The cross-entropy of logits [rows, vocabulary], summed with these weights, or of 1 each."""
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
    return (losses * weights).sum()


def chunk_rows(vocabulary: int, bytes_each: int, *, packed: bool = False) -> int:
    """How many supervised tokens one chunk of logits has.

    packed: for our own GEMMs on AMX, which read the head once for each chunk, and the gradient of
    its logits once for each strip of columns.
    """
    fewest = 256 if packed else 128
    return max(fewest, CHUNK_BYTES // (vocabulary * bytes_each) // 128 * 128)


def even_rows(rows: int, most: int) -> int:
    """The rows of each of as few chunks as `most` a chunk allow, all but the last equal.

    A small chunk at the end would read the whole head for little work. A multiple of 32, of which
    AMX tiles compute rows.
    """
    chunks = max(1, -(-rows // most))
    return min(most, max(1, -(-rows // (32 * chunks))) * 32)


def chunk_factor(values: Tensor) -> int:
    """By how much a chunk is larger on this device."""
    return GPU_CHUNKS if values.is_cuda else 1


def _base(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def plain_head(model: Any) -> Tensor | None:
    """The weight [vocabulary, size] of a head whose output is the logits, else None.

    None if the head has a bias, or if the model modifies the logits after the head.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or not _gives_logits(model, head, head):
        return None
    weight: Tensor = head.weight
    return weight


def plain_head_with_rows(model: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """A plain head of which only the rows of new tokens train, else None.

    Returns its frozen weight [vocabulary, size], the ids int64 [new] and their rows [new, size].
    """
    head = model.get_output_embeddings()
    linear = own_layer(head)
    if linear is head or type(linear) is not torch.nn.Linear:
        return None
    trained = rows_of(head.token_adapter)
    if trained is None or not _gives_logits(model, head, linear):
        return None
    return linear.weight, *trained


def _gives_logits(model: Any, head: Any, linear: torch.nn.Linear) -> bool:
    """Whether the output of `head`, which computes as `linear` does, is the logits."""
    config = model.config.get_text_config()
    modified = any(getattr(config, name, None) is not None for name in _LOGIT_MODIFIERS)
    if linear.bias is not None or modified:
        return False
    base = _base(model)
    if not hasattr(base, "has_plain_head"):
        base.has_plain_head = _trial_of_head(base, head.weight)
    return bool(base.has_plain_head)


def pack_head(model: Any, available: float, keep: Keep = private) -> list[Decision]:
    """Pack a frozen plain bf16 head for our own products on AMX, if this process can use them.

    The head keeps its weight; both packed copies take twice its bytes again, at most half of the
    `available` ones. keep: see layers.mapped.
    """
    head = plain_head(model)
    if head is None or head.requires_grad or (own := own_base(head.dtype)) is None:
        return []
    size = f"its packed copies take {2 * head.nbytes / GIB:.1f} GiB"
    if not keep("head is packed", lambda: 2 * head.nbytes <= available / 2):
        return [Decision("head's GEMMs", "oneDNN", f"{size}, over half of the free memory")]
    factory, name = own
    _base(model).packed_head = keep("packed head", lambda: factory(head.detach(), None))
    FilePages.read().drop(head.data_ptr(), head.nbytes)  # training reads the copies
    return [Decision("head's GEMMs", f"intel_ft ({name})", f"as the frozen GEMMs; {size}")]


_LOGIT_MODIFIERS = (
    "final_logit_softcapping",  # Gemma 2
    "logit_scale",  # Cohere
    "logits_scaling",  # Granite
    "logits_soft_cap",  # RecurrentGemma
    "lm_head_multiplier",  # Falcon H1
    "output_logit_soft_cap",  # xLSTM
)
"""Config keys that modify the logits after the head; other keys are found by the trial below."""


@torch.no_grad()
def _trial_of_head(base: Any, weight: Tensor) -> bool:
    """Whether the logits of `base` are its decoder's output times `weight`.

    It runs `base` once with random values in place of the decoder's output, large enough for a
    softcap to show.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 4, weight.shape[1], generator=generator).to(weight)
    hidden *= 100 / (hidden @ weight.T).abs().amax()
    decoder = base.get_decoder()
    replaced_forward = vars(decoder).get("forward")
    decoder.forward = lambda *_, **__: _Output(hidden)
    try:
        with torch.autocast(weight.device.type, enabled=False):
            tokens = torch.zeros(1, 4, dtype=torch.int64, device=weight.device)
            logits = base(input_ids=tokens, use_cache=False).logits.float()
    except (TypeError, AttributeError, RuntimeError, ValueError, LookupError):
        return False
    finally:
        del decoder.forward
        if replaced_forward is not None:
            decoder.forward = replaced_forward
    expected = (hidden @ weight.T).float()
    return bool((logits - expected).norm() <= 0.01 * expected.norm())


class _Output:
    """A decoder's output that has hidden states [1, tokens, size], and nothing else."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


class HeadLoss(torch.autograd.Function):
    """The cross-entropy of each hidden state under a frozen head, in chunks of logits.

    hidden [supervised, size], weight [vocabulary, size], targets int64 [supervised]. Forward
    computes the gradient of each chunk as well (Liger Kernel, Hsu et al. 2024), so that the whole
    logits never exist. A token's loss depends on its own hidden state only, so backward scales that
    gradient, whatever is computed from the losses. rows [new, size], float32, replace those of
    weight at the tokens ids, int64 [new], and train. packed: the weight for our own products, or
    None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ids: Tensor | None = None,
        rows: Tensor | None = None,
        packed: TileWeight | None = None,
    ) -> Tensor:
        """The loss of each token, float32 [supervised]; 0 where the target is IGNORED."""
        most = chunk_rows(len(weight), weight.element_size(), packed=packed is not None)
        size = even_rows(len(targets), most * chunk_factor(hidden))
        buffer = None
        if packed is None:
            buffer = hidden.new_empty(min(size, len(targets)), len(weight))
        new = None if rows is None else rows.to(weight.dtype)
        grads, grads_of_new = [], []
        losses = torch.zeros(len(targets), device=hidden.device)
        for start in range(0, len(targets), size):
            part = hidden[start : start + size]
            if packed is not None:
                logits = packed.linear(part, None)
            elif buffer is not None:
                logits = torch.mm(part, weight.T, out=buffer[: len(part)])
            if new is not None:
                logits[:, ids] = part @ new.T
            labels = targets[start : start + size]
            if packed is not None and new is None and ctx.needs_input_grad[0]:
                losses[start : start + size], grad_rows = tiles.cross_entropy(logits, labels)
                grads.append(packed.multiply_gradient(grad_rows, None))
                continue
            losses[start : start + size] = ops.cross_entropy(logits, labels)
            if not ctx.needs_input_grad[0]:
                continue
            of_new = None
            if new is not None:
                of_new = logits[:, ids]
                logits[:, ids] = 0
            grad = logits @ weight if packed is None else packed.input_gradient(logits, None)
            if of_new is not None and new is not None:
                grad.addmm_(of_new, new)
                grads_of_new.append(of_new)
            grads.append(grad)
        if ctx.needs_input_grad[0]:  # of a row without supervised tokens, it is empty
            grad = torch.cat(grads) if grads else torch.zeros_like(hidden)
            all_of_new = torch.cat(grads_of_new) if grads_of_new else None
            ctx.save_for_backward(grad, all_of_new, None if new is None else hidden)
            ctx.new = None if rows is None else rows.shape
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of hidden and rows."""
        grad, of_new, hidden = ctx.saved_tensors
        scales = gradients[0][:, None]
        grad_rows = None if ctx.new is None else torch.zeros(ctx.new, device=grad.device)
        if grad_rows is not None and of_new is not None:
            grad_rows += ((of_new * scales).to(hidden.dtype).T @ hidden).float()
        return (grad * scales).to(grad.dtype), None, None, None, grad_rows, None


class ChunkedLoss(torch.autograd.Function):
    """Any loss of the logits in chunks, as in HeadLoss, with autograd inside each chunk.

    For heads that train, and for losses without a kernel.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor | None, loss_of: LossOf) -> Tensor:
        """The loss, a float32 scalar; see LazyLogits and LossOf for the arguments."""
        scores = LazyLogits(values.detach(), None if weight is None else weight.detach())
        grad_values = torch.zeros_like(values) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if weight is not None and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(weight.shape, device=weight.device)
        rows = chunk_rows(scores.vocabulary, 4) * chunk_factor(values)
        total = torch.zeros((), device=values.device)
        for start in range(0, len(values), rows):
            chunk = slice(start, start + rows)
            logits = scores.logits(chunk)
            with torch.enable_grad():
                exact = logits.float().requires_grad_(grad_values is not None)
                loss = loss_of(exact, chunk)
            total += loss.detach()
            if grad_values is None:
                continue
            grad = torch.autograd.grad(loss, exact)[0].to(values.dtype)
            grad_values[chunk] = grad if scores.weight is None else grad @ scores.weight
            if grad_weight is not None:
                grad_weight += (grad.T @ scores.values[chunk]).float()
        if weight is not None and grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_values, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of values and weight."""
        scaled = (None if g is None else g * gradients[0].to(g.dtype) for g in ctx.saved_tensors)
        return *scaled, None
