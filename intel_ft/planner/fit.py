"""How a run's memory depends on its rows, and what to change in a config that does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from intel_ft.config import changed
from intel_ft.errors import IntelFTError
from intel_ft.host import cpu
from intel_ft.planner.inputs import PlanInputs, Run, run_of
from intel_ft.training.memory import MemorySetting, can_shard, estimate_memory, largest_row
from intel_ft.training.model_sizes import CountedModel, count_model

ROWS = (512, 1024, 2048, 4096, 8192, 16384)
"""The row lengths whose memory is listed."""

_SAME_WEIGHTS = ("backend.prepack=false", "train.activation_checkpointing=true")
_OTHER_WEIGHTS = ("model.base_dtype=int8", "method.name=qlora")
"""What makes a run smaller, least expensive first: with equal losses, and with a rounded base."""

_MOST_NODES = 256


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


@dataclass(frozen=True, eq=False)
class _Try:
    """A plan of the config with changes to it; needed: bytes of a rank."""

    changes: tuple[str, ...]
    inputs: PlanInputs
    run: Run
    needed: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.run.available

    @property
    def size(self) -> str:
        return f"{self.needed / cpu.GIB:.1f} GiB"


def changes(inputs: PlanInputs) -> list[str]:
    """The changes that would make the run fit, least expensive first; or that none would.

    Each is a plan of its own, of a config in which it was made.
    """
    start = _planned((), inputs)
    tries = list(_smaller(start))
    proposals = [f"{' '.join(one.changes)}: {one.size}" for one in tries if one.fits]
    tries.insert(0, start)
    if (sharded := _sharded(tries)) is not None:
        nodes = sharded.inputs.cluster.nodes
        proposals.append(
            f"{' '.join(sharded.changes)} with --nodes {nodes} --ranks 1: {sharded.size} per rank"
        )
    least = min(tries, key=lambda one: one.needed)
    lean, sizes = least.run.setting, least.inputs.model.sizes
    if row := largest_row(sizes, lean, least.run.available):
        proposals.append(
            f"train.max_tokens_per_row={row} and data.max_length at most that"
            + (f", with {' '.join(least.changes)}" if least.changes else "")
        )
    ranks = inputs.cluster.ranks
    if ranks > 1 and not lean.gpu and not lean.sharded:
        one = _planned((), replace(inputs, cluster=replace(inputs.cluster, ranks=1)))
        if one.fits:
            proposals.append(
                f"one rank per node instead of {ranks}, because each rank holds all weights"
            )
    if not proposals:
        smallest = estimate_memory(sizes, replace(lean, row_tokens=128, supervised=64)).needed
        proposals.append(
            f"no setting is enough: a rank needs at least {smallest / cpu.GIB:.1f} GiB: use more "
            f"memory or a smaller model{'' if sizes.linear else ', or train an adapter'}"
        )
    return proposals


def _planned(names: tuple[str, ...], inputs: PlanInputs) -> _Try:
    run = run_of(inputs)
    return _Try(names, inputs, run, estimate_memory(inputs.model.sizes, run.setting).needed)


def _smaller(start: _Try) -> Iterator[_Try]:
    """Tries that need less memory: of the same weights, then of a rounded base."""
    kept = start
    for change in _SAME_WEIGHTS:
        if (one := _changed(kept, change)) is not None:
            kept = one
            yield one
    rounded = []
    for change in _OTHER_WEIGHTS:
        for base in dict.fromkeys((start, kept)):
            if (one := _changed(base, change)) is not None:
                rounded.append(one)
                if one.fits:
                    break
    yield from rounded


def _changed(base: _Try, change: str) -> _Try | None:
    """`base` with one more change, or None if it is not possible or saves nothing."""
    config = base.inputs.config
    if change in _OTHER_WEIGHTS and (config.method.name != "lora" or config.base_dtype != "auto"):
        return None
    one = _with(base, change)
    return one if one is not None and one.needed < base.needed else None


def _with(base: _Try, change: str) -> _Try | None:
    """The plan of `base` with a change; None if it cannot be combined with the config."""
    try:
        config = changed(base.inputs.config, change)
        model = count_model(config)
    except IntelFTError:
        return None
    return _planned((*base.changes, change), replace(base.inputs, config=config, model=model))


def _sharded(tries: list[_Try]) -> _Try | None:
    """The fewest nodes of one rank each that share the weights and fit, if any do.

    A node's memory stays what it is, so that more ranks on one node save nothing.
    """
    sharing = []
    for base in tries:
        config, sizes = base.inputs.config, base.inputs.model.sizes
        if base.run.setting.gpu or config.backend.shard or not can_shard(config, sizes):
            continue
        one = _with(base, "backend.shard=true")
        sharing += [] if one is None else [one]
    nodes = max(2, tries[0].inputs.cluster.nodes)
    while nodes <= _MOST_NODES:
        for one in sharing:
            cluster = replace(one.inputs.cluster, nodes=nodes, ranks=1)
            if (found := _planned(one.changes, replace(one.inputs, cluster=cluster))).fits:
                return found
        nodes *= 2
    return None
