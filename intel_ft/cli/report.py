"""`intel-ft report`."""

from pathlib import Path
from typing import Annotated

import typer

from intel_ft.cli.options import Json, MaxNewTokens, show


def run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page; default report.html in the only RUN."),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(min=0, help="Have base and result answer so many held-out examples first."),
    ] = 0,
    max_new_tokens: MaxNewTokens = 128,
    json: Json = False,
) -> None:
    """One self-contained HTML page of one run, or of several side by side."""
    from intel_ft.errors import UserError
    from intel_ft.files import write_text
    from intel_ft.report.page import report

    if output is None and len(runs) > 1:
        raise UserError("several runs: say with -o where their report goes")
    page = runs[0] / "report.html" if output is None else output
    if page.is_dir():
        raise UserError(f"{page} is a folder: name a file")
    if samples:
        from intel_ft.report.samples import write_samples

        for each in runs:
            write_samples(each, samples, max_new_tokens)
    text = report(runs)
    try:
        write_text(page, text)
    except OSError as error:
        raise UserError(f"{page}: cannot be written ({error.strerror})") from None
    show({"report": str(page), "runs": len(runs), "bytes": len(text.encode())}, json)
