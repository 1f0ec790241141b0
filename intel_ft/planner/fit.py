"""Which settings decide a run's memory, what longer rows would take, and what to change where it
does not fit; called from insight.plan.
"""

from dataclasses import replace
from typing import Any

import torch

from intel_ft.config import Config
from intel_ft.host import cpu
from intel_ft.models.fast_path import choose_layout, why_not_own_layers
from intel_ft.models.flops import activation_bytes
from intel_ft.planner.workload import Rows
from intel_ft.training import memory
from intel_ft.training.memory import Layout, MemorySetting
from intel_ft.training.model_sizes import CountedModel

ROWS = (512, 1024, 2048, 4096, 8192, 16384)
"""The row lengths whose memory is listed."""


def setting_of(
    config: Config,
    model: CountedModel,
    steps: list[list[Rows]],
    dtype: torch.dtype,
    capacity: int,
    *,
    ranks: int,
    available: float,
    keeps_best: bool,
    gpu: bool = False,
) -> MemorySetting:
    """The setting of a run whose rows hold up to `capacity` tokens and in whose sampled `steps`
    they are those; `available` bytes a rank decide, as in models.frozen, whether weights are
    prepacked.
    """
    rows = [row for shares in steps for share in shares for row in share]
    lengths = [int(segments.sum()) for segments, _ in rows]
    largest = max(range(len(rows)), key=lambda index: lengths[index])
    return MemorySetting(
        layout=_layout(config, model, dtype, capacity, available, gpu),
        row_tokens=lengths[largest],
        supervised=rows[largest][1],
        uneven=len(set(lengths)) > 1,
        checkpointing=config.train.activation_checkpointing,
        itemsize=dtype.itemsize,
        optimizer=config.train.optimizer,
        ranks=ranks,
        keeps_best=keeps_best,
        teacher=None if model.teacher is None else model.teacher.weights,
        dropout=config.method.dropout > 0,
        gpu=gpu,
    )


def _layout(
    config: Config,
    model: CountedModel,
    dtype: torch.dtype,
    capacity: int,
    available: float,
    gpu: bool,
) -> Layout:
    """As a run decides, from what it will see: the runtime and the weights are loaded by then."""
    checkpointing = config.train.activation_checkpointing
    return choose_layout(
        config,
        dtype=dtype,
        linear_bytes=dtype.itemsize * model.sizes.linear,
        activations=activation_bytes(model.description, capacity, checkpointing),
        available=available - memory.RUNTIME - dtype.itemsize * model.sizes.parameters,
        prepackable=dtype == torch.bfloat16,
        on_gpu=gpu,
    )[0]


def by_row(model: CountedModel, setting: MemorySetting) -> list[dict[str, float]]:
    """A rank's memory in GiB by the length of its rows, without checkpointing and with."""
    share = setting.supervised / setting.row_tokens
    found = []
    for tokens in ROWS:
        row = replace(setting, row_tokens=tokens, supervised=int(share * tokens))
        plain, again = (
            memory.memory(model.sizes, replace(row, checkpointing=on)).total / cpu.GIB
            for on in (False, True)
        )
        found.append({"tokens": tokens, "total": plain, "total_checkpointing": again})
    return found


def _may_quantize(config: Config) -> bool:
    """Whether method.name=qlora could stand in place of what is there."""
    method = config.method
    return method.name == "lora" and not method.use_dora and why_not_own_layers(config) is None


def changes(
    config: Config,
    model: CountedModel,
    setting: MemorySetting,
    available: float,
    nodes: int,
    ranks: int,
) -> list[str]:
    """Each change that would make it fit, the one that costs least first; or that none does."""
    steps: list[tuple[str, dict[str, Any]]] = []
    if setting.layout == "prepacked":
        steps.append(("backend.prepack=false", {"layout": "as loaded"}))
    if not setting.checkpointing:
        steps.append(("train.activation_checkpointing=true", {"checkpointing": True}))
    if setting.layout in ("as loaded", "prepacked") and _may_quantize(config):
        # On a CPU NF4 is the dearer of the two, on a GPU the cheaper.
        place = 0 if setting.gpu else len(steps)
        steps.insert(place, ("method.name=qlora", {"layout": "nf4"}))
    found, taken, lean = [], [], setting
    for name, change in steps:  # each with those before it
        lean = replace(lean, **change)
        taken.append(name)
        total = memory.memory(model.sizes, lean).needed
        if total <= available:
            found.append(f"{' '.join(taken)}: {total / cpu.GIB:.1f} GiB")
    if row := memory.largest_row(model.sizes, lean, available):
        found.append(
            f"train.max_tokens_per_row={row} and data.max_length at most that"
            + (f", with {' '.join(taken)}" if taken else "")
        )
    if ranks > 1 and not setting.gpu:
        whole = memory.memory(model.sizes, replace(setting, ranks=nodes)).needed
        if whole <= available * ranks:
            found.append(f"one rank a node instead of {ranks}: each holds all weights")
    if not found:
        least = memory.memory(model.sizes, replace(lean, row_tokens=128, supervised=64)).needed
        found.append(
            f"nothing of this config: {least / cpu.GIB:.1f} GiB a rank is the least; take more "
            f"memory or a smaller model{'' if model.sizes.linear else ', or train an adapter'}"
        )
    return found
