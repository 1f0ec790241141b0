"""`intel-ft report`."""

from pathlib import Path
from typing import Annotated

import typer

from intel_ft.cli.options import Base, Json, MaxNewTokens, show


def run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One or more run folders.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write. Default: report.html in RUN."),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            min=0,
            help="Show the answers of the base and the trained model to this many validation "
            "examples.",
        ),
    ] = 0,
    examples: Annotated[
        int,
        typer.Option(min=0, help="Show this many training examples and mark what is trained on."),
    ] = 0,
    max_new_tokens: MaxNewTokens = 128,
    base: Base = None,
    json: Json = False,
) -> None:
    """Write an HTML page about one or more runs.

    The page is one self-contained file.
    """
    from intel_ft.errors import UserError
    from intel_ft.files import write_text
    from intel_ft.report.page import report

    if output is None and len(runs) > 1:
        raise UserError("several runs: name the HTML file with -o")
    page = runs[0] / "report.html" if output is None else output
    if page.is_dir():
        raise UserError(f"{page} is a folder: give a file name")
    if samples:
        from intel_ft.report.samples import write_samples

        for each in runs:
            write_samples(each, samples, max_new_tokens, base)
    if examples:
        from intel_ft.report.examples import write_examples

        for each in runs:
            write_examples(each, examples)
    text = report(runs)
    try:
        write_text(page, text)
    except OSError as error:
        raise UserError(f"{page}: cannot be written ({error.strerror})") from None
    show({"report": str(page), "runs": len(runs), "bytes": len(text.encode())}, json)
