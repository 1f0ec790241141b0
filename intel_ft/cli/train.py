"""`intel-ft train`."""

from pathlib import Path
from typing import Annotated

import typer

from intel_ft.cli.options import ConfigFile, Json, Overrides, show

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Remove what an earlier run left and start again.")
]


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Ranks that were launched; others are an error.")
    ] = None,
    master: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where ranks find each other.")
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For a log of each rank.")
    ] = None,
    json: Json = False,
) -> None:
    """Train an adapter as CONFIG says and write its run folder."""
    from intel_ft import config as configuration
    from intel_ft.distributed.rank_startup import Expected, begin

    settings = configuration.load(config, overrides)
    backend = settings.backend
    bound = begin(Expected(ranks, master, logs), backend.bind, backend.collective)
    from intel_ft.training.run import train

    show(train(settings, resume=resume, overwrite=overwrite, bound=bound), json)
