"""What a run's memory depends on, from its config, the model's sizes and its rows."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from intel_ft.config import Config
from intel_ft.layers.compressed import bytes_per_weight
from intel_ft.layers.own_products import int8_copies
from intel_ft.models.fast_path import choose_layout, packs_heads, shared_by
from intel_ft.models.load import is_pickled
from intel_ft.models.streamed import streamed_layout
from intel_ft.training.decide import row_capacity
from intel_ft.training.memory import RUNTIME, MemorySetting, estimate_memory
from intel_ft.training.model_sizes import CountedModel, ModelSizes


def memory_setting(
    config: Config,
    model: CountedModel,
    dtype: torch.dtype,
    rows: Sequence[tuple[int, int]],
    *,
    ranks: int,
    available: float,
    keeps_best: bool,
    prepackable: bool,
    gpu: bool = False,
    runtime: float = RUNTIME,
    token_ids: int | None = None,
    local_ranks: int = 1,
) -> MemorySetting:
    """The setting of a run with these rows, each (tokens, supervised tokens).

    available: bytes for one rank, before anything is loaded; prepackable: see `choose_layout`;
    local_ranks: ranks on each host.
    """
    row_tokens, supervised = max(rows)
    # Weights of another dtype than the file's are converted by each rank, before they are shared.
    mapped = getattr(model.description, "dtype", None) == dtype
    setting = MemorySetting(
        layout="prepacked",
        row_tokens=row_tokens,
        supervised=supervised,
        uneven=len({tokens for tokens, _ in rows}) > 1,
        checkpointing=config.train.activation_checkpointing,
        itemsize=dtype.itemsize,
        optimizer=config.train.optimizer,
        ranks=ranks,
        keeps_best=keeps_best,
        teacher=None if model.teacher is None else model.teacher.weights,
        dropout=config.method.dropout > 0,
        gpu=gpu,
        runtime=runtime,
        # Weights in the file's own dtype are mapped, and pages that nothing reads are not loaded.
        token_ids=token_ids if mapped else None,
        sharded=config.backend.shard and ranks > 1,
    )
    sharing = shared_by(config, local_ranks, on_gpu=gpu)
    layout, _ = choose_layout(
        config,
        dtype=dtype,
        linear_bytes=dtype.itemsize * model.sizes.linear,
        activations=full_row_activations(config, model.sizes, dtype),
        available=available - runtime - dtype.itemsize * model.sizes.parameters,
        prepackable=prepackable,
        on_gpu=gpu,
        shared_by=sharing,
    )
    packs_head = packs_heads(config, dtype) and layout in ("prepacked", "int8", "int4") and not gpu
    return replace(
        setting,
        layout=layout,
        packs_head=packs_head,
        shared_by=sharing if mapped else 1,
        streamed=streamed_layout(config, local_ranks, on_gpu=gpu) is not None
        and not is_pickled(config.model),
        int8_copies=int8_copies(dtype),
        code_bytes=bytes_per_weight(config.model.quantization) if layout == "int4" else 0.0,
    )


def full_row_activations(config: Config, sizes: ModelSizes, dtype: torch.dtype) -> int:
    """Bytes of activations of a full row, which prepacked weights have to leave room for."""
    tokens = int(row_capacity(config).value)
    setting = MemorySetting(
        layout="prepacked",
        row_tokens=tokens,
        supervised=tokens,
        uneven=True,
        checkpointing=config.train.activation_checkpointing,
        itemsize=dtype.itemsize,
    )
    return estimate_memory(sizes, setting).activations
