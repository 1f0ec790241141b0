"""Prints examples with what is trained on, for `intel-ft validate --show`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from intel_ft.data.shown import ShownExample

_TRAINED, _READ = "bold green", "dim"
BEGIN, END = "\u27e6", "\u27e7"
"""What stands around the trained parts where there are no colours."""


def print_examples(examples: "Sequence[ShownExample]") -> None:
    """Print the examples: trained parts in green on a terminal, in \u27e6 \u27e7 elsewhere."""
    console = Console(highlight=False, soft_wrap=True)
    colours = console.is_terminal and not console.no_color
    for number, example in enumerate(examples, 1):
        console.print(
            f"example {number}: {len(example.tokens):,} tokens, {sum(example.trained):,} trained on"
        )
        text = Text()
        for part, trained in example.parts:
            if colours:
                text.append(part, _TRAINED if trained else _READ)
            else:
                text.append(f"{BEGIN}{part}{END}" if trained else part)
        console.print(text)
