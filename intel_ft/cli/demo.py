"""`intel-ft demo`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from intel_ft.cli.options import Json, show


def run(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to keep the results in. Default: delete them at the end."
        ),
    ] = None,
    max_steps: Annotated[int, typer.Option(help="Number of optimizer steps.")] = 80,
    json: Json = False,
) -> None:
    """Run all stages on a small model that ships with intel-ft.

    Trains, evaluates, merges, exports to OpenVINO and generates an answer.
    """
    from intel_ft.demo import demo

    if output is not None:
        show(demo(output, max_steps=max_steps), json)
        return
    with tempfile.TemporaryDirectory(prefix="intel-ft-demo-") as scratch:
        show(demo(Path(scratch) / "demo", max_steps=max_steps), json)
