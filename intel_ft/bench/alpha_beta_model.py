"""The alpha-beta cost model of an all-reduce: formulas, fit to measured times, predictions.

A message of n bytes takes alpha + n * beta seconds: Hockney's model, as Thakur, Rabenseifner and
Gropp use it in "Optimization of Collective Communication Operations in MPICH", International
Journal of High Performance Computing Applications 19(1), 2005. Here beta includes the cost of the
additions, which is proportional to the bytes as well. Imports nothing heavy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Link:
    """The cost of a message: latency (alpha) and seconds per byte (beta, 1 / bandwidth)."""

    latency: float
    seconds_per_byte: float

    @classmethod
    def of(cls, gbit_per_s: float, latency_s: float, share: float = 1.0) -> "Link":
        """A network of that rate, of which messages reach the fraction `share`."""
        return cls(latency_s, 8 / (gbit_per_s * 1e9 * share))


@dataclass(frozen=True)
class Fit:
    """A link fitted to measured times, and the relative errors of its predictions of them."""

    link: Link
    median_error: float
    worst_error: float


def all_reduce_seconds(link: Link, ranks: int, size: int, algorithm: str = "best") -> float:
    """Seconds of an all-reduce of `size` bytes over p = `ranks` ranks, one per link.

    ring: reduce-scatter and all-gather around a ring, 2 (p - 1) messages of size / p (Patarasu and
    Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 69(2), 2009). halving: the same two steps
    by recursive halving and doubling, 2 log2 p messages with the same total bytes (Rabenseifner's
    algorithm; Thakur et al., 4.5). doubling: recursive doubling, log2 p messages of all bytes
    (ibid.). best: the fastest of the three, as libraries choose. If p is not a power of two, a tree
    has one more level.
    """
    if algorithm == "best":
        return min(all_reduce_seconds(link, ranks, size, name) for name in ALGORITHMS)
    messages, transfers = _counts(algorithm, ranks)
    return messages * link.latency + transfers * size * link.seconds_per_byte


ALGORITHMS = ("ring", "halving", "doubling")


def fit(times: Sequence[tuple[int, float]], ranks: int, algorithm: str) -> Fit:
    """The link with the smallest relative prediction errors (least squares).

    times: (bytes, seconds), with at least two different sizes. Latency and seconds per byte of the
    result are never negative.
    """
    if ranks < 2 or len({size for size, _ in times}) < 2:
        raise ValueError("a fit needs at least two ranks, and times of at least two sizes")
    messages, transfers = _counts(algorithm, ranks)
    rows = [(messages / t, transfers * size / t) for size, t in times]
    aa, ab, bb = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(row[i] for row in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    alpha, beta = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    if alpha < 0:
        alpha, beta = 0.0, b / bb
    elif beta < 0:
        alpha, beta = a / aa, 0.0
    link = Link(alpha, beta)
    errors = prediction_errors(link, times, ranks, algorithm)
    return Fit(link, median(errors), max(errors))


def prediction_errors(
    link: Link, times: Sequence[tuple[int, float]], ranks: int, algorithm: str
) -> list[float]:
    """|predicted - measured| / measured for each time."""
    return [abs(all_reduce_seconds(link, ranks, n, algorithm) - t) / t for n, t in times]


def predicted_efficiency(step_s: float, gradient_bytes: int, nodes: int, link: Link) -> float:
    """Weak scaling efficiency (0 to 1): the share of a step not spent in the all-reduce.

    step_s: a step on one node, including the communication between the ranks of that node. As in
    training, gradients are reduced once per step after the backward pass, without overlap.
    """
    if nodes == 1:
        return 1.0
    return step_s / (step_s + all_reduce_seconds(link, nodes, gradient_bytes))


def _counts(algorithm: str, ranks: int) -> tuple[int, float]:
    """Number of sequential messages, and how many times the whole buffer crosses a link."""
    levels = math.ceil(math.log2(ranks))
    crossed = 2 * (ranks - 1) / ranks
    return {
        "ring": (2 * (ranks - 1), crossed),
        "halving": (2 * levels, crossed),
        "doubling": (levels, float(levels)),
    }[algorithm]
