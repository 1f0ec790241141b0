"""Numbers and Markdown tables as the card shows them; called from hub.card."""

from collections.abc import Iterable
from typing import Any


def number(value: Any) -> str:
    """Four significant digits of a fraction, all digits of an integer, other values as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return f"{int(value):,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def percent(share: float) -> str:
    """A share as a percentage, three significant digits."""
    return f"{100 * share:.3g} %"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; numbers to the right."""
    body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [list(head), rule, *body])
