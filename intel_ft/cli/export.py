"""`intel-ft export`."""

from typing import Annotated, Literal

import typer

from intel_ft.cli.options import Base, Json, Output, Source, Trust, show


def run(
    source: Source,
    output: Output,
    format: Annotated[
        Literal["int8", "fp16"], typer.Option(help="Precision of the weights.")
    ] = "int8",
    base: Base = None,
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Write a model as OpenVINO IR with its tokenizer; an adapter is merged first."""
    from intel_ft.export.openvino import export

    show(export(source, output, format, base=base, trust_remote_code=trust_remote_code), json)
