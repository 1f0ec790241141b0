"""`intel-ft train`."""

from typing import Annotated

import typer

from intel_ft.cli.options import ConfigFile, Json, Overrides, show


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what an earlier run left and start again.")
    ] = False,
    json: Json = False,
) -> None:
    """Train an adapter as CONFIG says and write its run folder."""
    from intel_ft import config as configuration

    settings = configuration.load(config, overrides)
    from intel_ft.training.run import train

    show(train(settings, resume=resume, overwrite=overwrite), json)
