"""A run's numbers for its report: series, medians, spreads and histograms."""

from collections.abc import Callable
from typing import Any

import numpy as np

from intel_ft.report.charts import plain
from intel_ft.report.read_run import RunRecords, number

_WARM_UP = 2  # steps that compile and fill caches; excluded from speeds where there are more


def points(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float | None]]:
    """(step, value) of each line that has a step; None where its value is not a finite number."""
    return [
        (step, number(line, key)) for line in lines if (step := number(line, "step")) is not None
    ]


def values_of(lines: list[dict[str, Any]], key: str) -> list[float]:
    """The finite values of `key`."""
    return [value for line in lines if (value := number(line, key)) is not None]


def speeds(run: RunRecords, key: str) -> list[float]:
    """The finite values of `key` without the first steps, where there are more."""
    values = values_of(run.steps, key)
    return values[_WARM_UP:] if len(values) > 2 * _WARM_UP else values


def combined(combine: Callable[[list[float]], float], values: list[float]) -> str:
    """`combine` of the values as text, a dash where there are none."""
    return plain(combine(values)) if values else "-"


def last(lines: list[dict[str, Any]], key: str) -> str:
    """The last finite value as text."""
    return combined(lambda values: values[-1], values_of(lines, key))


def spread(values: list[float]) -> str:
    """The 10th and the 90th percentile as text."""
    if len(values) < 2:
        return "-"
    low, high = np.quantile(values, [0.1, 0.9])
    return f"{plain(low)}-{plain(high)}"


def histogram(values: list[float], bins: int = 24) -> tuple[list[float], list[float]]:
    """The edges of bins of equal width, and how many values are in each."""
    if not values:
        return [], []
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high), 1e-9)
    if high - low < 1e-6 * largest:  # too narrow for bins of different floats
        low, high = low - largest / 100, high + largest / 100
    counts, edges = np.histogram(values, bins, (low, high))
    return edges.tolist(), counts.tolist()


def numbers(values: Any) -> list[float]:
    """The finite numbers in a list that came from a file."""
    items = values if isinstance(values, list) else []
    return [value for item in items if (value := number({"": item}, "")) is not None]


def shown(value: Any) -> str:
    """A value of a record as text for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)[:2000]
    return f"{value:,}" if isinstance(value, int) else plain(value)
