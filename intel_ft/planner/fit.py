"""How a run's memory depends on its rows, and what to change in a config that does not fit."""

from dataclasses import replace
from typing import Any

from intel_ft.config import Config
from intel_ft.host import cpu
from intel_ft.models.fast_path import why_not_own_layers
from intel_ft.training.memory import MemorySetting, can_shard, estimate_memory, largest_row
from intel_ft.training.model_sizes import CountedModel

ROWS = (512, 1024, 2048, 4096, 8192, 16384)
"""The row lengths whose memory is listed."""


def by_row(model: CountedModel, setting: MemorySetting) -> list[dict[str, float]]:
    """One rank's memory in GiB by row length, without activation checkpointing and with it."""
    share = setting.supervised / setting.row_tokens
    memory_by_row = []
    for tokens in ROWS:
        row = replace(setting, row_tokens=tokens, supervised=int(share * tokens))
        without, checkpointed = (
            estimate_memory(model.sizes, replace(row, checkpointing=on)).total / cpu.GIB
            for on in (False, True)
        )
        memory_by_row.append(
            {"tokens": tokens, "total": without, "total_checkpointing": checkpointed}
        )
    return memory_by_row


def _may_quantize(config: Config) -> bool:
    """Whether method.name=qlora could replace the config's method."""
    method = config.method
    return method.name == "lora" and not method.use_dora and why_not_own_layers(config) is None


def _shards(
    config: Config, model: CountedModel, setting: MemorySetting, available: float
) -> list[str]:
    """The fewest ranks of this memory that share the weights and fit, if any do."""
    if setting.gpu or config.backend.shard or not can_shard(config, model.sizes):
        return []
    sizes = replace(model.sizes, why_not_fused="their weights are sharded")
    for ranks in (max(2, setting.ranks) << doubled for doubled in range(8)):
        sharded = replace(setting, sharded=True, ranks=ranks, layout="as loaded", packs_head=False)
        if (needed := estimate_memory(sizes, sharded).needed) <= available:
            return [f"backend.shard=true on {ranks} ranks: {needed / cpu.GIB:.1f} GiB per rank"]
    return []


def changes(
    config: Config,
    model: CountedModel,
    setting: MemorySetting,
    available: float,
    nodes: int,
    ranks: int,
) -> list[str]:
    """The changes that would make the run fit, least expensive first; or that none would."""
    steps: list[tuple[str, dict[str, Any]]] = []
    if setting.layout == "prepacked":
        steps.append(("backend.prepack=false", {"layout": "as loaded"}))
    if not setting.checkpointing:
        steps.append(("train.activation_checkpointing=true", {"checkpointing": True}))
    if setting.layout in ("as loaded", "prepacked") and _may_quantize(config):
        # On a CPU NF4 costs more time than checkpointing, on a GPU less.
        place = 0 if setting.gpu else len(steps)
        steps.insert(place, ("method.name=qlora", {"layout": "nf4"}))
    proposals, taken, lean = [], [], setting
    for name, change in steps:  # each in addition to those before it
        lean = replace(lean, **change)
        taken.append(name)
        total = estimate_memory(model.sizes, lean).needed
        if total <= available:
            proposals.append(f"{' '.join(taken)}: {total / cpu.GIB:.1f} GiB")
    proposals += _shards(config, model, setting, available)
    if row := largest_row(model.sizes, lean, available):
        proposals.append(
            f"train.max_tokens_per_row={row} and data.max_length at most that"
            + (f", with {' '.join(taken)}" if taken else "")
        )
    if ranks > 1 and not setting.gpu and not setting.sharded:
        whole = estimate_memory(model.sizes, replace(setting, ranks=nodes)).needed
        if whole <= available * ranks:
            proposals.append(
                f"one rank per node instead of {ranks}, because each rank holds all weights"
            )
    if not proposals:
        least = estimate_memory(model.sizes, replace(lean, row_tokens=128, supervised=64)).needed
        proposals.append(
            f"no setting is enough: a rank needs at least {least / cpu.GIB:.1f} GiB: use more "
            f"memory or a smaller model{'' if model.sizes.linear else ', or train an adapter'}"
        )
    return proposals
