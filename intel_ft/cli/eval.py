"""`intel-ft eval`."""

from typing import Annotated, Literal

import typer

from intel_ft.cli import options


def run(
    source: options.Source,
    data: Annotated[
        str, typer.Option(help="File, folder or Hub id of the examples to evaluate on.")
    ],
    split: Annotated[str, typer.Option(help="Split of the data to use.")] = "train",
    data_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Data format: alpaca, dolly, prompt_completion, question_answer, messages or "
            "text. auto detects it from the columns. Default: that of the run, else auto.",
        ),
    ] = None,
    template: options.Template = "auto",
    system: options.SystemPrompt = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Maximum length of an example, in tokens. Default: that of the run, else 1024."
        ),
    ] = None,
    on_long: Annotated[
        Literal["error", "drop", "truncate"] | None,
        typer.Option(help="What to do with longer examples. Default: that of the run, else error."),
    ] = None,
    on_bad: Annotated[
        Literal["error", "drop"] | None,
        typer.Option(
            help="What to do with rows that cannot be used. Default: that of the run, else error."
        ),
    ] = None,
    loss_on: Annotated[
        Literal["completion", "all", "last"] | None,
        typer.Option(
            help="Tokens that count: completion (all answers), all (every token) or last (the last "
            "answer). Default: that of the run, else completion."
        ),
    ] = None,
    generate: Annotated[int, typer.Option(help="Also generate answers to this many examples.")] = 0,
    max_new_tokens: options.MaxNewTokens = 256,
    base: options.Base = None,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Measure the loss and perplexity of MODEL on a dataset.

    With --generate, also measures exact match and the share of valid Python.
    """
    from intel_ft import api

    result = api.evaluate(
        source,
        data,
        split=split,
        data_format=data_format,
        template=template,
        system_prompt=system,
        max_length=max_length,
        on_long=on_long,
        on_bad=on_bad,
        loss_on=loss_on,
        generate=generate,
        max_new_tokens=max_new_tokens,
        base=base,
        trust_remote_code=trust_remote_code,
    )
    options.show(result, json)
