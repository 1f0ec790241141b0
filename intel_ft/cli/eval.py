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
        str, typer.Option("--format", help="Data format. auto detects it from the columns.")
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
    from intel_ft.artifacts.resolve import resolve
    from intel_ft.config import check_data
    from intel_ft.data.prepare import prepare
    from intel_ft.inference.evaluate import evaluate
    from intel_ft.runtimes.open_model import open_model

    artifact = resolve(source)
    prompt = system or artifact.system_prompt
    settings = check_data(
        {
            "train": data,
            "split": split,
            "format": data_format,
            "template": artifact.template or "auto" if template == "auto" else template,
            "system_prompt": prompt,
            "max_length": max_length,
            "on_long": on_long,
        }
    )
    model = open_model(artifact, trust_remote_code=trust_remote_code)
    prepared = prepare(settings, settings.train, model.tokenizer)
    result = evaluate(
        model,
        prepared,
        system_prompt=prompt,
        generate=generate,
        max_new_tokens=max_new_tokens,
    )
    options.show(result, json)
