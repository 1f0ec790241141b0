"""How long a step takes: a roofline whose parts follow one another; called from insight.plan.

Products take their operations over the rate measured for them, everything else its bytes over the
memory's bandwidth. The constants are fitted to docs/performance.md's tables of the 2-core machine
(row tokens 256-8192, batch 1-64, r 8-256, 1 and 2 threads), which they give back within 7 %.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intel_ft.insight.plan_model import ModelPlan, ModelSizes
from intel_ft.models.packed import ROW_QUANTUM

_ATTENTION = 0.45  # attention's share of the product rate
_PASSES = (140, 63)  # hidden- and intermediate-sized tensors read or written a token and layer
_UNFUSED = 2.0  # times as many where the layers are not models.fused
_WEIGHTS = 1.5  # times that a row reads the weights, each direction's and the head's layout
_OPTIMIZER = 40  # bytes moved a trained parameter: clipping, AdamW
_STEP = 0.1  # seconds a step of Trainer, plan and records
_AGAIN = (1.5, 4 / 3, 1.4)  # with checkpointing: products, LoRA and attention, the rest
_IN_NODE = {"ccl": 4.6e9, "mpi": 4.6e9, "gloo": 1.3e9}
"""Bytes a second of a ring's link inside of a node: 40 MB summed by two ranks in 8.7 and 30.5 ms
(oneCCL under Intel MPI, gloo)."""
_LATENCY = {"ccl": 2e-5, "mpi": 2e-5, "gloo": 5e-4}  # seconds a message, from 4 KB sums


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
    """Where the time of a step goes."""

    linear_layers: float
    lora: float
    attention: float
    logits: float
    memory: float
    fixed: float
    communication: float

    @property
    def total(self) -> float:
        """All parts."""
        return float(sum(vars(self).values()))


def rank_seconds(
    model: ModelPlan,
    rates: Rates,
    rows: list[tuple[npt.NDArray[np.int64], int]],
    itemsize: int,
    *,
    checkpointing: bool,
) -> Seconds:
    """One rank's part of a step: rows of (lengths of the segments, supervised tokens)."""
    sizes = model.sizes
    tokens = sum(_filled(int(lengths.sum())) for lengths, _ in rows)
    supervised = sum(_filled(count) for _, count in rows)
    squares = sum(float((lengths.astype(float) ** 2).sum()) for lengths, _ in rows)
    products, narrow, rest = _AGAIN if checkpointing else (1.0, 1.0, 1.0)
    moved = tokens * _bytes_a_token(sizes, itemsize) * rest
    moved += _WEIGHTS * 2 * itemsize * sizes.parameters * len(rows)
    return Seconds(
        linear_layers=products * 4 * sizes.linear * tokens / rates.linear,
        lora=narrow * 6 * sizes.lora * tokens / rates.gemm,
        attention=narrow * model.cost.attention * squares / (_ATTENTION * rates.gemm),
        logits=model.cost.logits * supervised / rates.gemm,
        memory=(moved + _OPTIMIZER * sizes.lora) / rates.bandwidth,
        fixed=_STEP,
        communication=0.0,
    )


def exchange_seconds(lora: int, nodes: int, ranks: int, collective: str, network: float) -> float:
    """Summing float32 gradients over nodes * ranks ranks in a ring, 2 (n - 1) / n of them over its
    slowest link (Patarasuk and Yuan 2009); network: bytes a second between nodes.
    """
    total = nodes * ranks
    if total == 1:
        return 0.0
    link = _IN_NODE[collective] if nodes == 1 else min(_IN_NODE[collective], network)
    return 2 * (total - 1) * (4 * lora / total / link + _LATENCY[collective])


def _filled(tokens: int) -> int:
    return -(-tokens // ROW_QUANTUM) * ROW_QUANTUM


def _bytes_a_token(sizes: ModelSizes, itemsize: int) -> float:
    hidden, intermediate = _PASSES
    passes = hidden * sizes.hidden + intermediate * sizes.intermediate
    return sizes.layers * itemsize * passes * (1.0 if sizes.why_not_fused is None else _UNFUSED)
