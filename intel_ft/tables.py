"""Tables of ready text: drawn for a terminal, or written as Markdown."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Column titles, rows of ready text, and notes that belong below them."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """A GitHub table: the first column aligned to the left, all others to the right."""
        rule = ("---",) + ("---:",) * (len(self.columns) - 1)
        head, *body = (tuple(map(escape_markdown, row)) for row in (self.columns, *self.rows))
        lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def draw(self) -> None:
        """Print it on stdout, fitted to the terminal's width; a file or pipe gets whole lines."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as Drawing

        drawing = Drawing(box=box.SIMPLE_HEAD)
        for index, column in enumerate(self.columns):
            drawing.add_column(column, justify="right" if index else "left", overflow="fold")
        for row in self.rows:
            drawing.add_row(*row)
        fitted = sys.stdout.isatty() or "COLUMNS" in os.environ
        console = Console(markup=False, highlight=False, width=None if fitted else 10_000)
        console.print(drawing)
        for note in self.notes:
            console.print(note)


def escape_markdown(text: str) -> str:
    """`text` in one line, with every character escaped that Markdown or HTML would act on."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.splitlines()))
