"""`intel-ft train`."""

from pathlib import Path
from typing import Annotated

import typer

from intel_ft.cli.options import ConfigFile, Json, Overrides, show

Resume = Annotated[
    bool, typer.Option("--resume", help="Continue from the latest complete checkpoint.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Delete the results of an earlier run and start over.")
]


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Number of ranks that must take part. Set by `intel-ft launch`."),
    ] = None,
    master: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address of rank 0. Set by `intel-ft launch`."),
    ] = None,
    logs: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for one log file per rank. Set by `intel-ft launch`."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train the model that CONFIG describes.

    Writes checkpoints, metrics and the result to output.directory, the run folder.
    """
    from intel_ft import api
    from intel_ft.distributed.rank_startup import LaunchOptions

    settings = api.load_config(config, overrides or [])
    launched = LaunchOptions(ranks=ranks, master=master, logs=logs)
    show(api.train(settings, resume=resume, overwrite=overwrite, launched=launched), json)
