"""`intel-ft doctor`."""

import dataclasses
import json as json_text

import typer

from intel_ft.cli.options import Json
from intel_ft.errors import EnvironmentProblem


def run(json: Json = False) -> None:
    """What this machine and its software can do, and what is wrong with them."""
    from intel_ft.insight.doctor.examine import examine
    from intel_ft.insight.doctor.screen import lines

    diagnosis = examine()
    if json:
        typer.echo(json_text.dumps(dataclasses.asdict(diagnosis), ensure_ascii=False))
    else:
        typer.echo("\n".join(lines(diagnosis)))
    if diagnosis.failed:
        raise typer.Exit(EnvironmentProblem.exit_code)
