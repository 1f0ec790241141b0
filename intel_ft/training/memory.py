"""Estimates the peak memory of one rank, part by part, before any weight is loaded.

`train` refuses a run with this formula and `plan` prints it. It counts the tensors that
layers.fused_decoder saves for backward, and was calibrated on the runs in docs/plan.md.
"""

from dataclasses import dataclass, replace

from intel_ft.config import Config
from intel_ft.conflicts import conflicts
from intel_ft.layers.nf4 import NF4_BYTES
from intel_ft.layers.packed_attention import COARSE_ROW_MULTIPLE, padded_length
from intel_ft.models.frozen_base import Layout
from intel_ft.models.loss import chunk_rows
from intel_ft.training.model_sizes import ModelSizes

RUNTIME = 0.51 * 2**30
"""Bytes of Python with what a run imports (463 MiB), the tokenizer (22), trainer and kernels (37),
on x86-64 with torch 2.13 and one thread (docs/log.md)."""

_BITSANDBYTES = 48 * 2**20
"""Bytes of bitsandbytes, which keeps weights in NF4."""

_DATA = ((200_000, 225.0), (1_000_000, 40.0), (5_000_000, 17.5), (float("inf"), 2.5))
"""Bytes of memory per token of the data, up to so many tokens: buffers of the tokenizer's threads,
one block of rows with its texts, and what is kept of the rest (docs/log.md)."""

_MORE_KERNELS = 32 * 2**20
"""Bytes of oneDNN's kernels for rows of further lengths; see host.allocator.KERNELS."""

CONTEXT = 0.5 * 2**30
"""Bytes of GPU memory that the CUDA context takes."""

OVERESTIMATE = 1.2
"""The highest ratio of an estimate to the measured peak in docs/plan.md, rounded up."""

_FRAGMENTATION = {"equal": 1.2, "differing": 1.35, "checkpointing": 2.0}
"""Memory held for activations over their size, because freed memory is fragmented: with rows of
equal and of differing lengths, and with checkpointing, whose saved inputs lie in between."""

_UNFUSED, _DORA = 1.6, 2.6
"""Activations over what `_unfused` counts, for layers that are not fused, and for DoRA's."""

_TEACHER_BYTES = 5 * 4
"""Bytes per logit of a chunk while a student is compared with its teacher, in float32."""

_RESERVED = 1.09
"""Memory that torch reserves on a GPU over the size of all tensors: 15.18 GiB for 14.01
(docs/cuda.md)."""

_OPTIMIZER = {
    "adamw_torch_fused": 8.0,
    "paged_adamw_32bit": 8.0,
    "adamw_torch": 12.0,
    "adafactor": 0.5,
    "sgd": 0.0,
}
"""Bytes per trained parameter: two float32 moments, and a temporary if the update is not fused."""


def data_bytes(tokens: int) -> float:
    """Bytes to read a run's data of so many tokens, and to keep them."""
    total, start = 0.0, 0.0
    for end, each in _DATA:
        total += each * max(0.0, min(tokens, end) - start)
        start = end
    return total


@dataclass(frozen=True)
class MemorySetting:
    """What memory depends on besides the sizes of the model.

    row_tokens, supervised: of the largest row; uneven: rows differ in length; itemsize: bytes of
    the base's dtype; keeps_best: a copy of the best trained weights is kept; teacher: bytes of a
    distillation's teacher, or None; gpu: estimate a GPU's memory; runtime: bytes of a process that
    are not the model's, without kernels for rows of several lengths; token_ids: the data uses only
    token ids below this, so that the file's other embeddings are never read, or None; packs_head:
    the head is packed for our own products; sharded: the ranks share all weights, gradients and
    optimizer state; shared_by: the ranks of a host that share one copy of the converted linear
    layers. Experts are stacked while they are loaded, by each rank, so that the peak is as without
    sharing; streamed: the frozen weights are converted while they are loaded; code_bytes: bytes per
    weight in layout int4; int8_copies: of a linear layer's weights (layers.own_products).
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
    token_ids: int | None = None
    packs_head: bool = False
    sharded: bool = False
    shared_by: int = 1
    streamed: bool = False
    code_bytes: float = 0.0
    int8_copies: int = 2


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank, part by part.

    base: weights that stay as loaded (embeddings, head, norms); experts: the frozen weights of a
    mixture's experts; loading: what is kept of them as they were loaded, in the base's dtype and
    stacked, before they were converted; mapped: pages of the weights' file that were read and are
    not needed any more, resident until the kernel needs the memory; trained: the weights that
    train, their gradients and copies; gathered: sharded weights and gradients while they are whole,
    of some layers in a step, or of all in bf16 on rank 0, which writes them; unused: reserved by
    torch but too fragmented.
    """

    runtime: int
    base: int
    linear_layers: int
    experts: int
    loading: int
    mapped: int
    teacher: int
    trained: int
    optimizer: int
    activations: int
    logits: int
    communication: int
    gathered: int = 0
    unused: int = 0

    @property
    def total(self) -> int:
        """All parts: the peak of resident memory."""
        return int(sum(vars(self).values()))

    @property
    def needed(self) -> int:
        """What has to fit: all parts except pages that the kernel can drop."""
        return self.total - self.mapped


def estimate_memory(sizes: ModelSizes, setting: MemorySetting) -> MemoryEstimate:
    """The peak of one rank's resident memory, or with `setting.gpu` of its GPU's memory."""
    item, trained = setting.itemsize, sizes.trained
    tokens, supervised = (
        padded_length(count, COARSE_ROW_MULTIPLE)
        for count in (setting.row_tokens, setting.supervised)
    )
    supervised = min(tokens, supervised)
    saved = _saved(sizes, setting, tokens, supervised)
    activations = saved + tokens * _backward_bytes(sizes, setting)
    if setting.layout in ("nf4", "int4"):  # the largest matrix in `itemsize` while its GEMM runs
        activations += item * sizes.hidden * sizes.intermediate
    padding = sizes.expert_padding if _groups(setting) else 0
    # Parameters, their gradients, their copies in the base's dtype, and the best ones so far.
    copies = 4 + 4 + item + (4 if setting.keeps_best else 0)
    rows = min(chunk_rows(sizes.vocabulary, item, packed=setting.packs_head), supervised)
    chunk = rows * sizes.vocabulary
    logits = item * (chunk + 3 * supervised * sizes.hidden)
    if setting.teacher is not None:
        logits += _TEACHER_BYTES * chunk
    if setting.packs_head:  # the gradient of the logits, packed
        logits += item * chunk
    read = sizes.kept_as_loaded
    if setting.token_ids is not None and not setting.gpu:
        unread = max(0, sizes.vocabulary - setting.token_ids)
        read -= sizes.embeddings * unread // sizes.vocabulary
    head = 2 * item * sizes.vocabulary * sizes.hidden if setting.packs_head else 0
    # Of other layouts, the pages of a converted weight leave memory (frozen_base.replace_linears).
    file_stays = setting.layout == "int4" and not setting.gpu and not setting.streamed
    # Experts are stacked while they are loaded, from pages that stay mapped with the file.
    stacked = 0 if setting.streamed or setting.gpu else sizes.expert_weights * item
    code = _MORE_KERNELS if setting.uneven else 0
    if setting.layout == "nf4":  # whose experts oneDNN multiplies, padded to a few more lengths
        code += _BITSANDBYTES + (_MORE_KERNELS if sizes.mixtures else 0)
    estimate = MemoryEstimate(
        runtime=int(CONTEXT if setting.gpu else setting.runtime + code),
        base=read * item,
        linear_layers=int((sizes.linear * _linear_bytes(setting) + head) / setting.shared_by),
        experts=int(sizes.expert_weights * _expert_bytes(setting)),
        loading=int(sizes.expert_weights * _kept_of_loading(setting)),
        mapped=(sizes.linear * item if file_stays else 0) + stacked,
        teacher=setting.teacher or 0,
        trained=trained * copies + item * padding,
        optimizer=int(trained * _OPTIMIZER[setting.optimizer]),
        activations=int(_fragmentation(setting) * activations),
        logits=logits,
        communication=2 * 4 * trained if setting.ranks > 1 else 0,
    )
    if setting.streamed:
        # One layer's experts, in parts and stacked, in memory that training takes afterwards.
        layer = 2 * item * sizes.expert_weights // max(1, sizes.mixtures)
        training = estimate.trained + estimate.optimizer + estimate.activations + estimate.logits
        return replace(estimate, loading=max(0, layer - training))
    if setting.sharded:
        return _sharded(sizes, setting, estimate)
    if not setting.gpu:
        return estimate
    return replace(estimate, unused=int((_RESERVED - 1) * estimate.total))


def _sharded(sizes: ModelSizes, setting: MemorySetting, whole: MemoryEstimate) -> MemoryEstimate:
    """One rank's part of what `whole` counts, and what FSDP2 gathers for a time.

    That is the head during the step, a layer and the next one, each with a buffer that it is copied
    from, and their gradients with float32 buffers that they are reduced in; at its end, the head's
    gradient and the embeddings. The file's pages stay mapped until the kernel needs the memory.
    """
    item, ranks = setting.itemsize, setting.ranks
    head = min(sizes.outside_layers, sizes.vocabulary * sizes.hidden)  # shared with the embeddings
    alone = sizes.outside_layers - head
    layer = (sizes.parameters - sizes.outside_layers) // max(1, sizes.layers)
    gathered = item * (2 * head + 3 * layer)
    trained = whole.trained - (item * sizes.trained if not sizes.linear else 0)
    if not sizes.linear:  # all weights train
        gathered += (item + 4) * (head + 2 * layer)
        at_end = item * 2 * head + (3 * item + 4) * alone
        gathered = max(gathered, at_end, 2 * sizes.trained)
    parts = {name: getattr(whole, name) // ranks for name in ("linear_layers", "base", "optimizer")}
    return replace(
        whole,
        **parts,
        mapped=2 * sizes.parameters,
        trained=trained // ranks,
        communication=0,
        gathered=gathered,
    )


def can_shard(config: Config, sizes: ModelSizes) -> bool:
    """Whether backend.shard=true supports the config, which is valid without it."""
    backend = config.backend.model_copy(update={"shard": True})
    sharded = config.model_copy(update={"backend": backend})
    return not sizes.mixtures and not any(conflicts(sharded))


def largest_row(sizes: ModelSizes, setting: MemorySetting, limit: float) -> int:
    """The most tokens of a row that fit into `limit` bytes, a multiple of 128; 0 if none do."""
    share = setting.supervised / max(setting.row_tokens, 1)

    def fits(multiple: int) -> bool:
        tokens = multiple * COARSE_ROW_MULTIPLE
        row = replace(setting, row_tokens=tokens, supervised=int(share * tokens))
        return estimate_memory(sizes, row).needed <= limit

    low, high = 0, 1
    while high < 2**20 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * COARSE_ROW_MULTIPLE


def _fragmentation(setting: MemorySetting) -> float:
    if setting.gpu:
        return 1.0  # see _RESERVED
    if setting.checkpointing:
        return _FRAGMENTATION["checkpointing"]
    return _FRAGMENTATION["differing" if setting.uneven else "equal"]


def _linear_bytes(setting: MemorySetting) -> float:
    """Bytes per frozen weight of a linear layer."""
    if setting.layout == "int8":
        return float(setting.int8_copies)
    if setting.layout == "nf4":
        return NF4_BYTES
    if setting.layout == "int4":
        return setting.code_bytes
    return 2.0 * setting.itemsize if setting.layout == "prepacked" else float(setting.itemsize)


def _kept_of_loading(setting: MemorySetting) -> float:
    """Bytes per weight of experts that the allocator keeps after they have been converted.

    Transformers stacks the experts of most families while it loads them, so they are no pages of
    the file.
    """
    return 0.0 if setting.gpu else setting.itemsize - min(setting.itemsize, _expert_bytes(setting))


def _groups(setting: MemorySetting) -> bool:
    """Whether layers.grouped_experts computes a mixture's experts, if this machine can."""
    return setting.layout != "nf4" and setting.itemsize == 2 and not setting.gpu


def _expert_bytes(setting: MemorySetting) -> float:
    """Bytes per frozen weight of a mixture's experts, which only int8 and NF4 convert.

    In int8 they are kept once, for both directions, if the base computes in bf16 (kernels.grouped).
    """
    if setting.layout == "int8":
        return 1.0 if setting.itemsize == 2 else 2.0
    return NF4_BYTES if setting.layout == "nf4" else float(setting.itemsize)


def _saved(sizes: ModelSizes, setting: MemorySetting, tokens: int, supervised: int) -> float:
    """Bytes that forward saves for backward.

    layers.fused_decoder saves in each layer its input, q, k, v, the attention's output with its
    float32 logsumexp, the residual stream after attention, gate, up, and x A of LoRA; of the last
    layer, what follows attention at supervised tokens only.
    """
    item = setting.itemsize
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    attention = item * (sizes.hidden + 2 * queries + 2 * keys) + 4 * sizes.heads
    after = item * (sizes.hidden + 2 * sizes.intermediate)
    if sizes.why_not_fused is not None:
        attention, after = _unfused(sizes, item)
    if sizes.mixtures:  # a mean over dense and mixed layers
        share = min(1.0, sizes.mixtures / max(1, sizes.layers))
        mixed = _mixture(sizes, setting)
        attention = int(share * mixed[0] + (1 - share) * attention)
        after = int(share * mixed[1] + (1 - share) * after)
    if setting.checkpointing:
        return tokens * (sizes.layers * item * sizes.hidden + attention + after)
    last = supervised if sizes.why_not_fused is None else tokens
    return sizes.layers * tokens * attention + ((sizes.layers - 1) * tokens + last) * after


def _unfused(sizes: ModelSizes, item: int) -> tuple[int, int]:
    """Bytes per token and layer, of attention and of the rest, that autograd saves.

    Norms save their float32 input twice, linear layers their input, activations input and output.
    """
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    factor = _DORA if sizes.dora else _UNFUSED
    attention = (8 + 3 * item) * sizes.hidden + item * 4 * (queries + keys)
    after = (8 + 3 * item) * sizes.hidden + item * 5 * sizes.intermediate
    return int(factor * attention), int(factor * after)


def _mixture(sizes: ModelSizes, setting: MemorySetting) -> tuple[int, int]:
    """Bytes per token and layer with experts, of attention and of the rest, that autograd saves.

    Norms save their input (those of q and k, too, where there are any), unchanged in bf16 on a CPU
    (layers.norms), else in float32; linear layers theirs, attention q, k, v and its output with the
    logsumexp. layers.experts saves its input, and for each expert that a token meets gate and up
    and x A of LoRA, whose rank it fills up to 32; the shared expert, of the width of one, is as in
    other layers.
    """
    item = setting.itemsize
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    of_norm = 2 if item == 2 and not setting.gpu else 4
    norm = (of_norm + item) * sizes.hidden
    attention = norm + (of_norm + 2 * item) * (queries + keys) + 4 * sizes.heads
    after = norm + item * (sizes.active_experts + 1) * 2 * (sizes.expert_intermediate + 32)
    return attention, after


def _backward_bytes(sizes: ModelSizes, setting: MemorySetting) -> float:
    """Bytes per token while the largest part of one layer's backward runs.

    That is the MLP's (the gradients of gate and up, SwiGLU recomputed, the incoming gradient), or
    with shared KV heads attention's, whose gradients are float32.
    """
    item = setting.itemsize
    mlp: float = item * (4 * sizes.intermediate + 4 * sizes.hidden)
    if setting.layout == "int8":
        mlp += sizes.intermediate + sizes.hidden
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    shared = 8 * queries if sizes.heads != sizes.kv_heads else 0
    attention = item * (3 * sizes.hidden + 2 * queries + 2 * keys) + shared
    # Rows of a mixture's experts: their outputs or input gradients, and a sum in float32; where all
    # experts are multiplied at once, with gate and up, their gradients and SwiGLU of all rows.
    each = item * sizes.hidden
    if _groups(setting):
        each += item * 4 * sizes.expert_intermediate
        each += sizes.hidden if setting.layout == "int8" else 0
    mixture = sizes.active_experts * each + 8 * sizes.hidden
    if sizes.mixtures == sizes.layers:
        mlp = 0
    return float(max(mlp, attention, mixture))
