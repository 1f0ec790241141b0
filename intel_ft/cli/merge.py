"""`intel-ft merge`."""

from typing import Annotated

import typer

from intel_ft.cli.options import Base, Json, Output, Trust, show


def run(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a run or an adapter.")],
    output: Output,
    base: Base = None,
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Merge an adapter into its bf16 base model.

    Checks that the merged model's logits agree with those of base plus adapter.
    """
    from intel_ft import api

    show(api.merge(source, output, base=base, trust_remote_code=trust_remote_code), json)
