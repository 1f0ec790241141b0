"""How long a step takes: a roofline whose parts follow one another; called from insight.plan.

Products take their operations over the rate measured for them, everything else its bytes over the
memory's bandwidth. The constants are fitted to docs/performance.md's tables of the 2-core machine
(row tokens 256-8192, batch 1-64, r 8-256, 1 and 2 threads), which they give back within 7 %; those
of GPUs to docs/cuda.md's, within 25 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from intel_ft.models.flops import StepCost, with_teacher
from intel_ft.models.nf4 import NF4_BYTES
from intel_ft.models.packed_attention import padded_length
from intel_ft.planner.workload import Rows
from intel_ft.training.memory import MemorySetting
from intel_ft.training.model_sizes import CountedModel, ModelSizes

_ATTENTION = 0.45  # attention's share of the product rate
_PASSES = (140, 63)  # hidden- and intermediate-sized tensors read or written a token and layer
_DROPPED = (42, 7)  # more of them with dropout, which models.fused does three times an input
_UNFUSED, _DORA = 4.5, 10.0  # times as many where the layers are not models.fused
_WEIGHTS = 1.5  # times that a row reads the weights, each direction's and the head's layout
_OPTIMIZER = 40  # bytes moved a trained parameter: clipping, AdamW
STEP = 0.1  # seconds a step of Trainer, plan and records
_AGAIN = (1.5, 4 / 3, 1.4)  # with checkpointing: products, LoRA and attention, the rest
_LAUNCHES = {"nf4": 156, "as loaded": 128}  # kernels a row and layer that Python starts on a GPU
_LAUNCH = 45e-6  # seconds of the host for each
_OF_LAYERS = ("linear_layers", "trained", "attention", "memory")
_IN_NODE = {"ccl": 4.6e9, "mpi": 4.6e9, "gloo": 1.3e9, "nccl": 1e11}
"""Bytes a second of a ring's link inside of a node: 40 MB summed by two ranks in 8.7 and 30.5 ms
(oneCCL under Intel MPI, gloo). NCCL's is assumed, of NVLink."""
_LATENCY = {"ccl": 2e-5, "mpi": 2e-5, "gloo": 5e-4, "nccl": 2e-5}  # seconds a message, of 4 KB sums


@dataclass(frozen=True)
class Rates:
    """What one rank computes (bf16 or float32, and the frozen layers' own, which may be int8) and
    moves a second.
    """

    gemm: float
    linear: float
    bandwidth: float


@dataclass(frozen=True)
class Seconds:
    """Where the time of a step goes. linear_layers: the frozen ones; trained: the products of the
    weights that train; host: what a GPU waits for Python.
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
        """With layers that take so many times as long."""
        return replace(self, **{name: times * getattr(self, name) for name in _OF_LAYERS})


def rank_seconds(model: CountedModel, rates: Rates, rows: Rows, setting: MemorySetting) -> Seconds:
    """One rank's part of a step."""
    sizes, cost, item = model.sizes, model.cost, setting.itemsize
    work = _work(rows)
    products, narrow, rest = _AGAIN if setting.checkpointing else (1.0, 1.0, 1.0)
    passes = [a + b * setting.dropout for a, b in zip(_PASSES, _DROPPED, strict=True)]
    moved = work.tokens * _bytes_a_token(sizes, item, passes) * rest
    if sizes.why_not_fused is not None:
        moved *= _DORA if sizes.dora else _UNFUSED
    moved += _WEIGHTS * 2 * item * sizes.parameters * len(rows)
    if setting.layout == "nf4":  # read and made `item` bytes again, once for each direction
        moved += 2 * (NF4_BYTES + item) * sizes.linear * len(rows)
    frozen, experts = 4 * sizes.linear, 4 * sizes.experts
    seconds_a_token = frozen / rates.linear + experts / rates.gemm
    found = Seconds(
        linear_layers=products * seconds_a_token * work.tokens,
        trained=narrow * (cost.linear - frozen - experts) * work.tokens / rates.gemm,
        attention=narrow * cost.attention * work.squares / (_ATTENTION * rates.gemm),
        logits=cost.logits * work.supervised / rates.gemm,
        memory=(moved + _OPTIMIZER * sizes.trained) / rates.bandwidth,
        teacher=_teacher_seconds(model, rates, work, item),
        host=0.0,
        fixed=STEP,
        communication=0.0,
    )
    if not setting.gpu:
        return found
    launches = _LAUNCHES[setting.layout] * sizes.layers * len(rows) * narrow
    return replace(found, host=max(0.0, launches * _LAUNCH - (found.total - STEP)))


@dataclass(frozen=True)
class _Work:
    """Of a step's rows, filled up: tokens, those supervised, and segments' lengths squared."""

    tokens: int
    supervised: int
    squares: float


def _work(rows: Rows) -> _Work:
    return _Work(
        sum(padded_length(int(lengths.sum())) for lengths, _ in rows),
        sum(padded_length(count) for _, count in rows),
        sum(float((lengths.astype(float) ** 2).sum()) for lengths, _ in rows),
    )


def _teacher_seconds(model: CountedModel, rates: Rates, work: _Work, item: int) -> float:
    """Of reading the rows, in layers that are not models.fused: a third of a step's movements."""
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
    """Summing float32 gradients over nodes * ranks ranks in a ring, 2 (n - 1) / n of them over its
    slowest link (Patarasuk and Yuan 2009); network: bytes a second between nodes.
    """
    total = nodes * ranks
    if total == 1:
        return 0.0
    link = _IN_NODE[collective] if nodes == 1 else min(_IN_NODE[collective], network)
    return 2 * (total - 1) * (4 * trained / total / link + _LATENCY[collective])


def _bytes_a_token(sizes: ModelSizes, itemsize: int, passes: Sequence[int]) -> float:
    hidden, intermediate = passes
    return sizes.layers * itemsize * (hidden * sizes.hidden + intermediate * sizes.intermediate)
