"""Charts of a report as inline SVG, coloured by the page's style sheet."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from intel_ft.plot import tick_step

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 230, 64, 12, 30, 34
_MAX_POINTS = 600

Points = list[tuple[float, float | None]]
"""x ascending, y None where there is a gap."""


def line_chart(
    title: str,
    series: list[tuple[int, str, Points]],
    *,
    from_zero: bool = False,
    reference: tuple[float, str] | None = None,
    x_label: str = "step",
) -> Markup:
    """Lines over x; empty where there is nothing to draw.

    Each series is (colour, name, points); `reference` is a level drawn across, with its label.
    """
    thinned = [(colour, name, _thinned(points)) for colour, name, points in series]
    xs = [x for _, _, points in thinned for x, y in points if y is not None]
    ys = [y for _, _, points in thinned for _, y in points if y is not None]
    if not ys:
        return Markup()
    if reference is not None:
        ys.append(reference[0])
    scale = _Scale(min(xs), max(xs), 0.0 if from_zero else min(ys), max(ys))
    parts = [*_frame(title, scale, x_label)]
    if reference is not None:
        y = scale.down(reference[0])
        parts.append(f'<path class="level" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_WIDTH - _RIGHT, y - 4, reference[1], "end"))
    for colour, name, points in thinned:
        parts.append(_line(scale, colour % 6, name, points))
    return _svg(title, parts)


def bar_chart(
    title: str, colour: int, edges: Sequence[float], counts: Sequence[float], x_label: str
) -> Markup:
    """A histogram: counts between one edge and the next; empty where there is nothing to draw."""
    if len(edges) != len(counts) + 1 or not counts or max(counts) <= 0 or edges[-1] <= edges[0]:
        return Markup()
    scale = _Scale(edges[0], edges[-1], 0.0, max(counts))
    parts = [*_frame(title, scale, x_label)]
    bottom = scale.down(0.0)
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        across, top = scale.across(left), scale.down(count)
        width = max(0.5, scale.across(right) - across - 1)
        parts.append(
            f'<rect class="bar c{colour % 6}" x="{across:.1f}" y="{top:.1f}" '
            f'width="{width:.1f}" height="{bottom - top:.1f}"/>'
        )
    return _svg(title, parts)


def plain(value: float) -> str:
    """A number for people."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"


class _Scale:
    """From values to places; y is stretched to whole ticks."""

    def __init__(self, low_x: float, high_x: float, low: float, high: float) -> None:
        self.low_x = low_x
        self.high_x = high_x if high_x > low_x else low_x + max(1.0, abs(low_x) / 1000)
        spread = high - low
        if spread <= abs(high) * 1e-9:
            spread = abs(high) or 1.0
            low = min(low, high - spread / 2) if low else low
        self.step = tick_step(spread, 4)
        self.low = math.floor(low / self.step) * self.step
        self.ticks = max(1, math.ceil((high - self.low) / self.step - 1e-9))
        self.high = self.low + self.ticks * self.step

    def across(self, x: float) -> float:
        share = (x - self.low_x) / (self.high_x - self.low_x)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def down(self, y: float) -> float:
        share = (y - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _frame(title: str, scale: _Scale, x_label: str) -> list[str]:
    parts = [_text(_LEFT, 16, title, "start", "title")]
    for tick in range(scale.ticks + 1):
        value = scale.low + tick * scale.step
        y = scale.down(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, y + 4, plain(value), "end"))
    step = tick_step(scale.high_x - scale.low_x, 5)
    first = math.ceil(scale.low_x / step)
    for tick in range(first, first + 7):
        if tick * step <= scale.high_x:
            parts.append(_text(scale.across(tick * step), _HEIGHT - 18, plain(tick * step)))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 3, x_label))
    return parts


def _line(scale: _Scale, colour: int, name: str, points: Points) -> str:
    """One path, broken at gaps; a value between two gaps is a dot."""
    path, dots, pen_down = [], [], False
    for index, (x, y) in enumerate(points):
        if y is None:
            pen_down = False
            continue
        place = f"{scale.across(x):.1f} {scale.down(y):.1f}"
        after = points[index + 1][1] if index + 1 < len(points) else None
        if not pen_down and after is None:
            dots.append(f"M{place}h0")
        path.append(f"{'L' if pen_down else 'M'}{place}")
        pen_down = True
    drawn = "".join(path)
    dot = f'<path class="dot c{colour}" d="{"".join(dots)}"/>' if dots else ""
    return f'<path class="line c{colour}" d="{drawn}"><title>{_escaped(name)}</title></path>{dot}'


def _thinned(points: Points) -> Points:
    """At most _MAX_POINTS, each the mean of its neighbours; a gap among them stays a gap."""
    size = -(-len(points) // _MAX_POINTS)
    if size <= 1:
        return points
    thinned: Points = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        values = [y for _, y in group if y is not None]
        whole = len(values) == len(group)
        thinned.append((group[0][0], sum(values) / len(values) if whole else None))
    return thinned


def legend_line(colour: int) -> Markup:
    """A short line as in the charts, for a legend."""
    path = f'<path class="line c{colour % 6}" d="M0 4H30"/>'
    return Markup(f'<svg class="chip" viewBox="0 0 30 8">{path}</svg>')


def printable(value: object) -> str:
    """Any value as text, with the characters replaced that UTF-8 and XML cannot carry."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in text)


def _escaped(text: str) -> str:
    return escape(printable(text))


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="{kind}">{_escaped(text)}</text>'


def _svg(title: str, parts: list[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_escaped(title)}">'
        + "".join(parts)
        + "</svg>"
    )
