"""`intel-ft doctor`."""

import dataclasses
import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from intel_ft.cli.options import Json, Mpirun, Ssh
from intel_ft.errors import EnvironmentProblem

_STYLES: dict[str, dict[str, Any]] = {
    "ERROR": {"fg": "red", "bold": True},
    "WARNING": {"fg": "yellow", "bold": True},
}


def run(
    hosts: Annotated[
        Path | None,
        typer.Option(help="Examine every host in this file and show how they differ."),
    ] = None,
    ssh: Ssh = "ssh",
    mpirun: Mpirun = None,
    json: Json = False,
) -> None:
    """Examine this machine and its software.

    Reports problems and how to fix them.
    """
    from intel_ft.doctor import examine, text
    from intel_ft.doctor import hosts as several

    if hosts is None:
        report = examine.examine()
        _show(report, report.failed, text.diagnosis_lines(report), json)
    else:
        comparison = several.examine(hosts, ssh, mpirun)
        _show(comparison, comparison.failed, text.comparison_lines(comparison), json)


def _show(report: Any, failed: bool, lines: list[str], json: bool) -> None:
    if json:
        typer.echo(json_text.dumps(dataclasses.asdict(report), ensure_ascii=False))
    else:
        for line in lines:
            typer.secho(line, **_STYLES.get(line.partition(" ")[0], {}))
    if failed:
        raise typer.Exit(EnvironmentProblem.exit_code)
