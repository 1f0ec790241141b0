"""Plots as SVG files: lines in panels over a shared log2 axis, and labelled points.

Drawn without a library: docs/log.md, "Libraries weighed", has the measurements.
"""

import math
from html import escape

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _GAP = 640, 180, 72, 24, 40, 36
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c")
_INK, _GRID = "#333333", "#dddddd"


def line_plot(
    title: str, x_label: str, x: list[float], series: dict[str, list[float]], ticks: int = 4
) -> str:
    """The series over log2 of `x` (all above 0), each in a panel whose y axis starts at 0.

    Every value of `x` gets a tick, each y axis about `ticks` of them above 0.
    """
    if not x or any(len(values) != len(x) for values in series.values()):
        raise ValueError("a plot needs a value of each series for every x, and at least one x")
    low, high = math.log2(min(x)), math.log2(max(x))
    span = (high - low) or 1.0
    inner = _WIDTH - _LEFT - _RIGHT
    across = [_LEFT + inner * ((math.log2(v) - low) / span if high > low else 0.5) for v in x]
    height = _TOP + len(series) * (_PANEL + _GAP) + 24
    parts = _opening(title, height)
    for index, (name, values) in enumerate(series.items()):
        top = _TOP + index * (_PANEL + _GAP)
        colour = _COLOURS[index % len(_COLOURS)]
        parts += _panel(top, name, colour, list(zip(across, x, values, strict=True)), ticks)
    parts += [_text(_LEFT + inner / 2, height - 6, x_label), "</svg>", ""]
    return "\n".join(parts)


def scatter_plot(
    title: str,
    x_label: str,
    y_label: str,
    points: list[tuple[float, float, str]],
    limit: float | None = None,
    ticks: int = 4,
) -> str:
    """Labelled points (x, y, label) over axes that start at 0, or below it where a y is negative.

    `limit` is drawn as a dashed line across.
    """
    if not points:
        raise ValueError("a plot needs at least one point")
    heights = [y for _, y, _ in points] + ([limit] if limit is not None else [])
    step_x = tick_step(max(x for x, _, _ in points), ticks)
    step_y = tick_step(max(*heights, -min(heights), 1e-9), ticks)
    below = math.ceil(max(0.0, -min(heights)) / step_y - 1e-9)
    above = max(1, math.ceil(max(heights) / step_y - 1e-9))
    inner, tall = _WIDTH - _LEFT - _RIGHT, 320
    bottom = _TOP + tall

    def across(x: float) -> float:
        return _LEFT + inner * x / (step_x * ticks)

    def down(y: float) -> float:
        return bottom - tall * (y / step_y + below) / (above + below)

    parts = _opening(title, bottom + 44)
    for tick in range(-below, above + 1):
        y = down(tick * step_y)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(_text(_LEFT - 8, y + 4, f"{tick * step_y:,.10g}", "end"))
    for tick in range(ticks + 1):
        x = across(tick * step_x)
        parts.append(_line(x, _TOP, x, bottom))
        parts.append(_text(x, bottom + 16, f"{tick * step_x:,.10g}"))
    if limit is not None:
        y = down(limit)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" '
            f'stroke="{_COLOURS[1]}" stroke-dasharray="6 4"/>'
        )
        parts.append(_text(_WIDTH - _RIGHT - 6, y - 6, "limit", "end"))
    for x, y, label in points:
        parts.append(
            f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="4" fill="{_COLOURS[0]}"/>'
        )
        right = across(x) > _WIDTH / 2
        place = across(x) - 8 if right else across(x) + 8
        parts.append(_text(place, down(y) - 6, label, "end" if right else "start"))
    parts.append(_text(_LEFT + inner / 2, bottom + 36, x_label))
    parts.append(_text(_WIDTH - _RIGHT, _TOP - 8, y_label, "end"))
    return "\n".join([*parts, "</svg>", ""])


def tick_step(most: float, ticks: int) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that reaches `most` in `ticks` steps."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most / ticks))
    return next(f * power for f in (1, 2, 2.5, 5, 10, 20) if f * power * ticks >= most * 0.999999)


def _opening(title: str, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _text(_LEFT, 22, title, "start", 'font-size="14"'),
    ]


def _panel(
    top: float, name: str, colour: str, points: list[tuple[float, float, float]], ticks: int
) -> list[str]:
    """A panel _PANEL high with labels below; each point is (place across, x, y)."""
    step = tick_step(max(y for _, _, y in points), ticks)
    bottom = top + _PANEL
    parts = []
    for tick in range(ticks + 1):
        y = bottom - _PANEL * tick / ticks
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(_text(_LEFT - 8, y + 4, f"{tick * step:,.10g}", "end"))
    places = [(across, bottom - _PANEL * y / (step * ticks)) for across, _, y in points]
    for (across, _), (_, x, _) in zip(places, points, strict=True):
        parts.append(_line(across, top, across, bottom))
        parts.append(_text(across, bottom + 16, f"{x:,.10g}"))
    drawn = " ".join(f"{across:.1f},{y:.1f}" for across, y in places)
    parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts += [f'<circle cx="{a:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for a, y in places]
    parts.append(_text(_WIDTH - _RIGHT - 6, bottom - 8, name, "end", f'style="fill:{colour}"'))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_GRID}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(text)}</text>'
