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
        str,
        typer.Option(
            "--format",
            help="Data format: alpaca, dolly, prompt_completion, question_answer, messages or "
            "text. auto detects it from the columns.",
        ),
    ] = "auto",
    template: options.Template = "auto",
    system: options.SystemPrompt = None,
    max_length: Annotated[
        int, typer.Option(help="Maximum length of an example, in tokens.")
    ] = 1024,
    on_long: Annotated[
        Literal["error", "drop", "truncate"],
        typer.Option(help="What to do with examples over the maximum length."),
    ] = "error",
    generate: Annotated[int, typer.Option(help="Also generate answers to this many examples.")] = 0,
    max_new_tokens: options.MaxNewTokens = 256,
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
        generate=generate,
        max_new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    options.show(result, json)
