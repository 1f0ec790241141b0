"""How much memory a rank will have had resident at its peak, part by part; called from
insight.plan.

Counted from what models.fused keeps for backward, and calibrated on the runs in docs/plan.md.
"""

from dataclasses import dataclass, replace
from typing import Literal

from intel_ft.models.loss import CHUNK_BYTES
from intel_ft.models.nf4 import NF4_BYTES
from intel_ft.models.packed_attention import ROW_MULTIPLE, padded_length
from intel_ft.training.model_sizes import ModelSizes

Layout = Literal["as loaded", "prepacked", "int8", "nf4"]

RUNTIME = 0.75 * 2**30
"""Bytes of Python, torch, Transformers, peft, datasets, the tokenized data and oneDNN's kernels."""

CONTEXT = 0.5 * 2**30
"""Bytes of a GPU that CUDA takes for itself."""

_SPREAD = {"equal": 1.2, "differing": 1.35, "checkpointing": 2.0}
"""What activations take over what they hold, because freed memory is in pieces: with rows of equal
and of differing lengths, and with checkpointing, whose kept inputs stand in between."""

_UNFUSED, _DORA = 1.6, 2.6
"""What activations take over what `_unfused` counts, where models.fused does not compute them."""

_OF_TEACHER = 5 * 4
"""Bytes for each logit of a chunk while a student is held against its teacher, in float32."""

_RESERVED = 1.09
"""The same of all tensors on a GPU: torch held 15.18 GiB for 14.01 (docs/cuda.md)."""

_OPTIMIZER = {
    "adamw_torch_fused": 8.0,
    "paged_adamw_32bit": 8.0,
    "adamw_torch": 12.0,
    "adafactor": 0.5,
    "sgd": 0.0,
}
"""Bytes a trained parameter: two float32 moments, and a temporary where it is not fused."""


@dataclass(frozen=True)
class MemorySetting:
    """What memory depends on beside the model.

    row_tokens, supervised: of the largest row; uneven: rows differ in length; itemsize: bytes of
    the base's dtype; keeps_best: an evaluation keeps a copy of what is trained; teacher: bytes of
    a distillation's, None without; dropout: there is some; gpu: it is the memory of a GPU; runtime:
    bytes of a process that are not the model's; named: the first tokens of the vocabulary, whose
    embeddings alone are ever read from the file, None where it may be any.
    """

    layout: Layout
    row_tokens: int
    supervised: int
    uneven: bool
    checkpointing: bool
    itemsize: int = 2
    optimizer: str = "adamw_torch_fused"
    ranks: int = 1
    keeps_best: bool = False
    teacher: int | None = None
    dropout: bool = False
    gpu: bool = False
    runtime: float = RUNTIME
    named: int | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank, part by part; `base` is what is kept as loaded (embeddings, head, norms).

    mapped: pages of the weights' file that stay mapped though their layout has been changed. They
    are resident, but the kernel drops them when memory is short. trained: the weights that train,
    their gradients and copies. unused: held for tensors, but in pieces too small for them.
    """

    runtime: int
    base: int
    linear_layers: int
    mapped: int
    teacher: int
    trained: int
    optimizer: int
    activations: int
    logits: int
    communication: int
    unused: int = 0

    @property
    def total(self) -> int:
        """All parts: the peak of resident memory."""
        return int(sum(vars(self).values()))

    @property
    def needed(self) -> int:
        """What has to fit: without what the kernel can drop."""
        return self.total - self.mapped


def memory(sizes: ModelSizes, setting: MemorySetting) -> Memory:
    """The peak of resident memory, in bytes, of one rank; with `setting.gpu` that of its GPU."""
    item, trained = setting.itemsize, sizes.trained
    tokens = padded_length(setting.row_tokens)
    supervised = min(tokens, padded_length(setting.supervised))
    kept = _kept(sizes, tokens, supervised, item, setting.checkpointing)
    held = kept + tokens * _backward_bytes(sizes, setting)
    if setting.layout == "nf4":  # the largest matrix in `itemsize` for as long as it multiplies
        held += item * sizes.hidden * sizes.intermediate
    # Parameters, their gradients, their copies in the base's dtype, and the best ones so far.
    copies = 4 + 4 + item + (4 if setting.keeps_best else 0)
    chunk = max(128, CHUNK_BYTES // (sizes.vocabulary * item) // 128 * 128)
    logits = item * (min(chunk, supervised) * sizes.vocabulary + 3 * supervised * sizes.hidden)
    if setting.teacher is not None:
        logits += _OF_TEACHER * min(chunk, supervised) * sizes.vocabulary
    read = sizes.kept_as_loaded
    if setting.named is not None and not setting.gpu:
        read -= sizes.embeddings * max(0, sizes.vocabulary - setting.named) // sizes.vocabulary
    file_stays = setting.layout != "as loaded" and not setting.gpu
    found = Memory(
        runtime=int(CONTEXT if setting.gpu else setting.runtime),
        base=read * item,
        linear_layers=int(sizes.linear * _linear_bytes(setting)),
        mapped=sizes.linear * item if file_stays else 0,
        teacher=setting.teacher or 0,
        trained=trained * copies,
        optimizer=int(trained * _OPTIMIZER[setting.optimizer]),
        activations=int(_spread(setting) * held),
        logits=logits,
        communication=2 * 4 * trained if setting.ranks > 1 else 0,
    )
    return replace(found, unused=int((_RESERVED - 1) * found.total)) if setting.gpu else found


def _spread(setting: MemorySetting) -> float:
    if setting.gpu:
        return 1.0  # see _RESERVED
    if setting.checkpointing:
        return _SPREAD["checkpointing"]
    return _SPREAD["differing" if setting.uneven else "equal"]


def largest_row(sizes: ModelSizes, setting: MemorySetting, limit: float) -> int:
    """The most tokens of a row that fit into `limit` bytes, a multiple of 128; 0 if none do."""
    share = setting.supervised / max(setting.row_tokens, 1)

    def fits(quanta: int) -> bool:
        tokens = quanta * ROW_MULTIPLE
        row = replace(setting, row_tokens=tokens, supervised=int(share * tokens))
        return memory(sizes, row).needed <= limit

    low, high = 0, 1
    while high < 2**20 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * ROW_MULTIPLE


def _linear_bytes(setting: MemorySetting) -> float:
    """Bytes a frozen weight of a linear layer."""
    if setting.layout == "int8":
        return 2.0  # one byte, for each direction
    if setting.layout == "nf4":
        return NF4_BYTES
    return 2.0 * setting.itemsize if setting.layout == "prepacked" else float(setting.itemsize)


def _kept(sizes: ModelSizes, tokens: int, supervised: int, item: int, checkpointing: bool) -> float:
    """Bytes that forward keeps for backward.

    models.fused keeps in each layer its input, q, k, v, the attention's output with the float32
    log of its sums, the middle of the residual stream, gate, up, and LoRA's narrow products; the
    last layer keeps what follows attention at supervised tokens only.
    """
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    attention = item * (sizes.hidden + 2 * queries + 2 * keys) + 4 * sizes.heads
    after = item * (sizes.hidden + 2 * sizes.intermediate)
    if sizes.why_not_fused is not None:
        attention, after = _unfused(sizes, item)
    if checkpointing:
        return tokens * (sizes.layers * item * sizes.hidden + attention + after)
    last = supervised if sizes.why_not_fused is None else tokens
    return sizes.layers * tokens * attention + ((sizes.layers - 1) * tokens + last) * after


def _unfused(sizes: ModelSizes, item: int) -> tuple[int, int]:
    """Bytes a token and layer, of attention and of the rest, where autograd decides what is kept:
    norms keep their float32 input twice, products their input, activations input and output.
    """
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    more = _DORA if sizes.dora else _UNFUSED
    attention = (8 + 3 * item) * sizes.hidden + item * 4 * (queries + keys)
    after = (8 + 3 * item) * sizes.hidden + item * 5 * sizes.intermediate
    return int(more * attention), int(more * after)


def _backward_bytes(sizes: ModelSizes, setting: MemorySetting) -> float:
    """Bytes a token while the dearest part of one layer's backward runs: the gradients of gate and
    up, SwiGLU again and the gradient that came in; or, where KV heads are shared, attention's
    gradients in float32.
    """
    item = setting.itemsize
    mlp = item * (4 * sizes.intermediate + 4 * sizes.hidden)
    if setting.layout == "int8":
        mlp += sizes.intermediate + sizes.hidden
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    shared = 8 * queries if sizes.heads != sizes.kv_heads else 0
    attention = item * (3 * sizes.hidden + 2 * queries + 2 * keys) + shared
    return float(max(mlp, attention))
