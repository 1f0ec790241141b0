"""`intel-ft demo`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from intel_ft.cli.options import Json, show


def run(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep what is made here.")
    ] = None,
    max_steps: Annotated[int, typer.Option(help="Steps of the training.")] = 80,
    json: Json = False,
) -> None:
    """Train, evaluate, merge, export and ask the model that ships with intel-ft."""
    from intel_ft.demo import demo

    if output is not None:
        show(demo(output, max_steps=max_steps), json)
        return
    with tempfile.TemporaryDirectory(prefix="intel-ft-demo-") as scratch:
        show(demo(Path(scratch) / "demo", max_steps=max_steps), json)
