"""What a report says of a run's numbers: series, medians, spreads, histograms; called from
insight.report.
"""

import statistics
from collections.abc import Callable
from typing import Any

from intel_ft.report.charts import plain
from intel_ft.report.read_run import RunRecords, number

_WARM_UP = 2  # steps that compile and fill caches; left out of speeds where there are more


def points(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float | None]]:
    """(step, value) of each line that has a step; None where its value is no finite number."""
    found = []
    for line in lines:
        step = number(line, "step")
        if step is not None:
            found.append((step, number(line, key)))
    return found


def values_of(lines: list[dict[str, Any]], key: str) -> list[float]:
    """The finite values of `key`."""
    return [value for line in lines if (value := number(line, key)) is not None]


def speeds(run: RunRecords, key: str) -> list[float]:
    """The same without the first steps, where there are more."""
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
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return f"{plain(tenths[0])}-{plain(tenths[-1])}"


def histogram(values: list[float], bins: int = 24) -> tuple[list[float], list[float]]:
    """The edges of equally wide bins, and how many values are in each."""
    if not values:
        return [], []
    low, high = min(values), max(values)
    width = (high - low) / bins or max(abs(high), 1e-9) / bins
    counts = [0.0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return [low + width * index for index in range(bins + 1)], counts


def numbers(values: Any) -> list[float]:
    """The finite numbers in a list that came from a file."""
    found = values if isinstance(values, list) else []
    return [value for item in found if (value := number({"": item}, "")) is not None]


def shown(value: Any) -> str:
    """A value of a record as text for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)[:2000]
    return f"{value:,}" if isinstance(value, int) else plain(value)
