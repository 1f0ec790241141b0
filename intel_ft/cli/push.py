"""`intel-ft push`."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from intel_ft.cli.options import Json, show


def run(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A run, adapter, merged or OpenVINO folder.")
    ],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository on the Hub.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it.")] = False,
    tag: Annotated[str | None, typer.Option(help="A tag for this revision, such as v1.")] = None,
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="The run it came from, for the card.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The base model's id on the Hub, if trained from a folder.")
    ] = None,
    relation: Annotated[
        Literal["adapter", "finetune", "quantized", "merge"] | None,
        typer.Option(help="What it is to the base model; known without it."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Its license; default is the base model's.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Its language, such as en; can be repeated.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="A data set's id on the Hub; can be repeated.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="A README.md of your own instead of the written one.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files, sizes and card; send nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Publish a model on the Hugging Face Hub, with a card made from its records."""
    signal.signal(signal.SIGINT, _leave)
    if sys.stderr.isatty():  # an upload can take an hour; the client reads this when imported
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    from intel_ft.hub.metadata import Wishes
    from intel_ft.hub.push import push

    wishes = Wishes(base_model, relation, license, tuple(language or ()), tuple(dataset or ()))
    report = push(
        folder,
        repo,
        wishes=wishes,
        run=run_folder,
        card=card,
        public=public,
        tag=tag,
        dry_run=dry_run,
    )
    if json:
        show(report, True)
        return
    if dry_run:
        typer.echo(report.card)
    for path, size in report.files.items():
        typer.echo(f"{size:>15,}  {path}")
    typer.echo(f"{sum(report.files.values()):>15,}  bytes in {len(report.files)} files")
    for path in report.left_out:
        typer.echo(f"{'not sent':>15}  {path}")
    if report.commit:
        show({"url": report.url, "commit": report.commit, "tag": report.tag}, False)


def _leave(*_: object) -> None:
    """Ctrl-C ends the process at once: the client's threads would send their files to the end."""
    os.write(2, b"interrupted\n")
    os._exit(130)
