"""`intel-ft doctor`."""

import dataclasses
import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from intel_ft.cli.options import Json
from intel_ft.errors import EnvironmentProblem

_STYLES: dict[str, dict[str, Any]] = {
    "ERROR": {"fg": "red", "bold": True},
    "WARNING": {"fg": "yellow", "bold": True},
}


def run(
    hosts: Annotated[
        Path | None, typer.Option(help="On all hosts of this file, and what differs between them.")
    ] = None,
    ssh: Annotated[str, typer.Option(help="The program that reaches hosts.")] = "ssh",
    mpirun: Annotated[
        str | None, typer.Option(help="Default: the one beside this Python, else on PATH.")
    ] = None,
    json: Json = False,
) -> None:
    """What this machine and its software can do, and what is wrong with them."""
    from intel_ft.doctor import examine, text
    from intel_ft.doctor import hosts as several

    if hosts is None:
        found = examine.examine()
        _say(found, found.failed, text.lines(found), json)
    else:
        comparison = several.examine(hosts, ssh, mpirun)
        _say(comparison, comparison.failed, text.compared(comparison), json)


def _say(found: Any, failed: bool, lines: list[str], json: bool) -> None:
    if json:
        typer.echo(json_text.dumps(dataclasses.asdict(found), ensure_ascii=False))
    else:
        for line in lines:
            typer.secho(line, **_STYLES.get(line.partition(" ")[0], {}))
    if failed:
        raise typer.Exit(EnvironmentProblem.exit_code)
