"""Predicts the time of a step: a roofline whose parts add up, because none of them overlap.

GEMMs take their operations divided by the measured GEMM rate, everything else its bytes divided by
the memory's bandwidth. The constants were fitted to the tables of the 2-core machine in
docs/performance.md (row tokens 256-8192, batch 1-64, r 8-256, 1 and 2 threads), which they
reproduce within 7 %; those of GPUs to docs/cuda.md, within 25 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from intel_ft.layers.nf4 import NF4_BYTES
from intel_ft.layers.packed_attention import padded_length, row_multiple
from intel_ft.models.flops import StepCost, with_teacher
from intel_ft.planner.workload import Rows
from intel_ft.training.memory import MemorySetting
from intel_ft.training.model_sizes import CountedModel, ModelSizes

_ATTENTION = 0.45  # attention's rate over the GEMM rate
_PASSES = (140, 63)  # hidden- and intermediate-sized vectors moved per token and layer
_DROPOUT_PASSES = (42, 7)  # and with dropout, applied three times per input when fused
_UNFUSED, _DORA = 4.5, 10.0  # factors on the passes of layers that are not fused
_WEIGHTS = 1.5  # times that a row reads the weights: both layouts, and the head's
_OPTIMIZER = 40  # bytes moved per trained parameter: clipping, AdamW
STEP = 0.1  # seconds per step for Trainer, plan and records
_RECOMPUTED = (1.5, 4 / 3, 1.4)  # with checkpointing: GEMMs; LoRA and attention; the rest
_LAUNCHES = {"nf4": 156, "as loaded": 128}  # GPU kernels launched per row and layer
_LAUNCH = 45e-6  # seconds of the host for each
_OF_LAYERS = ("linear_layers", "trained", "attention", "memory")
_IN_NODE = {"ccl": 4.6e9, "mpi": 4.6e9, "gloo": 1.3e9, "nccl": 1e11}
"""Bytes per second of a ring's link inside a node: two ranks all-reduce 40 MB in 8.7 ms (oneCCL
under Intel MPI) and 30.5 ms (gloo). NCCL's is assumed, for NVLink."""
_LATENCY = {"ccl": 2e-5, "mpi": 2e-5, "gloo": 5e-4, "nccl": 2e-5}  # seconds, all-reduce of 4 KB


@dataclass(frozen=True)
class Rates:
    """Operations and bytes per second of one rank; `linear` is of frozen layers, perhaps int8."""

    gemm: float
    linear: float
    bandwidth: float


@dataclass(frozen=True)
class Seconds:
    """Where the time of a step goes.

    linear_layers: the frozen ones; trained: GEMMs of the weights that train; host: time that a GPU
    waits for Python.
    """

    linear_layers: float
    trained: float
    attention: float
    logits: float
    memory: float
    teacher: float
    host: float
    fixed: float
    communication: float

    @property
    def total(self) -> float:
        """All parts."""
        return float(sum(vars(self).values()))

    def slower(self, times: float) -> "Seconds":
        """The same step with layers that take `times` as long."""
        return replace(self, **{name: times * getattr(self, name) for name in _OF_LAYERS})


def rank_seconds(model: CountedModel, rates: Rates, rows: Rows, setting: MemorySetting) -> Seconds:
    """The time that one rank spends on these rows of a step."""
    sizes, cost, item = model.sizes, model.cost, setting.itemsize
    work = _work(rows, row_multiple("cuda" if setting.gpu else "cpu"))
    gemms, small, rest = _RECOMPUTED if setting.checkpointing else (1.0, 1.0, 1.0)
    passes = [a + b * setting.dropout for a, b in zip(_PASSES, _DROPOUT_PASSES, strict=True)]
    moved = work.tokens * _bytes_a_token(sizes, item, passes) * rest
    if sizes.why_not_fused is not None:
        moved *= _DORA if sizes.dora else _UNFUSED
    moved += _WEIGHTS * 2 * item * sizes.parameters * len(rows)
    if setting.layout in ("nf4", "int4"):  # dequantized to `item` bytes, once in each direction
        weights = sizes.linear + (sizes.expert_weights if setting.layout == "nf4" else 0)
        moved += 2 * (NF4_BYTES + item) * weights * len(rows)
    frozen, experts = 4 * sizes.linear, 4 * sizes.experts
    of_experts = rates.linear if setting.layout in ("int8", "nf4") else rates.gemm
    seconds_a_token = frozen / rates.linear + experts / of_experts
    seconds = Seconds(
        linear_layers=gemms * seconds_a_token * work.tokens,
        trained=small * (cost.linear - frozen - experts) * work.tokens / rates.gemm,
        attention=small * cost.attention * work.squares / (_ATTENTION * rates.gemm),
        logits=cost.logits * work.supervised / rates.gemm,
        memory=(moved + _OPTIMIZER * sizes.trained) / rates.bandwidth,
        teacher=_teacher_seconds(model, rates, work, item),
        host=0.0,
        fixed=STEP,
        communication=0.0,
    )
    if not setting.gpu:
        return seconds
    launches = _LAUNCHES[setting.layout] * sizes.layers * len(rows) * small
    return replace(seconds, host=max(0.0, launches * _LAUNCH - (seconds.total - STEP)))


@dataclass(frozen=True)
class _Work:
    """Of some padded rows: tokens, supervised tokens, and the sum of squared segment lengths."""

    tokens: int
    supervised: int
    squares: float


def _work(rows: Rows, multiple: int) -> _Work:
    return _Work(
        sum(padded_length(row.tokens, multiple) for row in rows),
        sum(padded_length(row.supervised, multiple) for row in rows),
        float(sum(row.squares for row in rows)),
    )


def _teacher_seconds(model: CountedModel, rates: Rates, work: _Work, item: int) -> float:
    """Forward of the teacher, whose layers are not fused: a third of a step's memory traffic."""
    if model.teacher is None:
        return 0.0
    cost = with_teacher(StepCost(0.0, 0.0, 0.0), model.teacher.cost)
    flops = cost.linear * work.tokens + cost.logits * work.supervised
    flops += cost.attention * work.squares / _ATTENTION
    moved = work.tokens * _UNFUSED * _bytes_a_token(model.teacher.sizes, item, _PASSES) / 3
    return flops / rates.gemm + moved / rates.bandwidth


def exchange_seconds(
    trained: int, nodes: int, ranks: int, collective: str, network: float
) -> float:
    """Ring all-reduce of float32 gradients over n = nodes * ranks ranks; network is in bytes/s.

    2 (n - 1) / n of the gradients pass over the slowest link (Patarasuk and Yuan 2009).
    """
    total = nodes * ranks
    if total == 1:
        return 0.0
    link = _IN_NODE[collective] if nodes == 1 else min(_IN_NODE[collective], network)
    return 2 * (total - 1) * (4 * trained / total / link + _LATENCY[collective])


def gather_seconds(
    model: CountedModel,
    setting: MemorySetting,
    rows: float,
    nodes: int,
    collective: str,
    network: float,
) -> float:
    """The exchange of a step with sharded weights, with so many rows on the rank that has most.

    For each row all weights are gathered in both directions and float32 gradients reduced, layer by
    layer, by rings: (n - 1) / n of the bytes pass over the slowest link.
    """
    sizes, total = model.sizes, setting.ranks
    link = _IN_NODE[collective] if nodes == 1 else min(_IN_NODE[collective], network)
    moved = 2 * setting.itemsize * sizes.parameters + 4 * sizes.trained
    latency = 3 * (sizes.layers + 1) * _LATENCY[collective]
    return rows * (total - 1) * (moved / total / link + latency)


def _bytes_a_token(sizes: ModelSizes, itemsize: int, passes: Sequence[int]) -> float:
    hidden, intermediate = passes
    return sizes.layers * itemsize * (hidden * sizes.hidden + intermediate * sizes.intermediate)
