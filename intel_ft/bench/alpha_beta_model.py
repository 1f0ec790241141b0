"""The cost model of an all-reduce, its fit to measured times, and what it predicts of many nodes;
called from insight.bench_collectives and tools. Imports nothing heavy.

A message of n bytes takes alpha + n * beta seconds: Hockney's model, as Thakur, Rabenseifner and
Gropp use it in "Optimization of Collective Communication Operations in MPICH", International
Journal of High Performance Computing Applications 19(1), 2005. What adding up costs is part of
beta here: it too is proportional to the bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Link:
    """What a message costs: alpha, and beta, whose inverse is the bandwidth."""

    seconds: float
    seconds_per_byte: float

    @classmethod
    def of(cls, gbit_per_s: float, latency_s: float, share: float = 1.0) -> "Link":
        """A network of that rate, of which messages get `share`, as measured on another."""
        return cls(latency_s, 8 / (gbit_per_s * 1e9 * share))


@dataclass(frozen=True)
class Fit:
    """A link fitted to measured times: the relative errors of its predictions of them."""

    link: Link
    median_error: float
    worst_error: float


def all_reduce_seconds(link: Link, ranks: int, size: int, algorithm: str = "best") -> float:
    """How long an all-reduce of `size` bytes takes on each of `ranks`, one to a link.

    ring: reduce-scatter and all-gather around a ring, 2 (p - 1) messages of size / p (Patarasu and
    Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 69(2), 2009). halving: the same two by
    recursive halving and doubling, 2 log2 p messages of together as many bytes (Rabenseifner's;
    Thakur et al., 4.5). doubling: recursive doubling, log2 p messages of all bytes (there too).
    best: the quickest, as libraries choose. Ranks that are no power of two cost a tree one level
    more.
    """
    if algorithm == "best":
        return min(all_reduce_seconds(link, ranks, size, name) for name in ALGORITHMS)
    messages, transfers = _counts(algorithm, ranks)
    return messages * link.seconds + transfers * size * link.seconds_per_byte


ALGORITHMS = ("ring", "halving", "doubling")


def fit(times: Sequence[tuple[int, float]], ranks: int, algorithm: str) -> Fit:
    """The link whose predictions have the smallest relative errors, least squares, for times of
    (bytes, seconds) on that many ranks, at least two of them at different sizes. Neither number
    of it is below 0.
    """
    if ranks < 2 or len({size for size, _ in times}) < 2:
        raise ValueError("a fit needs two ranks or more, and times of two sizes or more")
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
    """|predicted - measured| / measured of each time."""
    return [abs(all_reduce_seconds(link, ranks, n, algorithm) - t) / t for n, t in times]


def predicted_efficiency(step_s: float, gradient_bytes: int, nodes: int, link: Link) -> float:
    """Weak scaling: the share of a step's time that is not spent waiting for other nodes, 0 to 1.

    step_s: a step on one node, what its own ranks say to each other within. Gradients are summed
    once a step, after the backward pass, and nothing overlaps it, as in training.
    """
    if nodes == 1:
        return 1.0
    return step_s / (step_s + all_reduce_seconds(link, nodes, gradient_bytes))


def _counts(algorithm: str, ranks: int) -> tuple[int, float]:
    """Messages one after another, and how many times the buffer crosses a link."""
    levels = math.ceil(math.log2(ranks))
    crossed = 2 * (ranks - 1) / ranks
    return {
        "ring": (2 * (ranks - 1), crossed),
        "halving": (2 * levels, crossed),
        "doubling": (levels, float(levels)),
    }[algorithm]
