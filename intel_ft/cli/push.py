"""`intel-ft push`."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from intel_ft.cli.options import Json, show
from intel_ft.plurals import count_of


def run(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Folder of a run, an adapter, a merged model or an OpenVINO model."
        ),
    ],
    repo: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Repository on the Hub, with its owner.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public. Default: private.")
    ] = False,
    tag: Annotated[str | None, typer.Option(help="Tag for this revision, such as v1.")] = None,
    run_folder: Annotated[
        Path | None,
        typer.Option("--run", help="Run folder that the model came from, for the model card."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="Hub id of the base model. Required if training used a local folder."),
    ] = None,
    relation: Annotated[
        Literal["adapter", "finetune", "quantized", "merge"] | None,
        typer.Option(help="Relation to the base model, for the card. Default: detected from DIR."),
    ] = None,
    model_license: Annotated[
        str | None, typer.Option("--license", help="License id. Default: that of the base model.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Language of the model, such as en. Repeatable.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Hub id of a training dataset. Repeatable.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="README.md to use instead of the generated model card.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the files, their sizes and the card without uploading."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Publish a model on the Hugging Face Hub.

    Generates a model card from the records of the run.
    """
    signal.signal(signal.SIGINT, _leave)
    if sys.stderr.isatty():  # an upload can take an hour; the client reads this when imported
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    from intel_ft.hub.metadata import CardOptions
    from intel_ft.hub.push import push

    card_options = CardOptions(
        base_model, relation, model_license, tuple(language or ()), tuple(dataset or ())
    )
    report = push(
        folder,
        repo,
        card_options=card_options,
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
    typer.echo(f"{sum(report.files.values()):>15,}  bytes in {count_of(len(report.files), 'file')}")
    for path in report.left_out:
        typer.echo(f"{'not sent':>15}  {path}")
    if report.commit:
        show({"url": report.url, "commit": report.commit, "tag": report.tag}, False)


def _leave(*_: object) -> None:
    """End the process at Ctrl-C at once: the client's threads would finish their uploads."""
    os.write(2, b"interrupted\n")
    os._exit(130)
