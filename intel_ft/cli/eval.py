"""`intel-ft eval`."""

from typing import Annotated, Literal

import typer

from intel_ft.cli import options


def run(
    source: options.Source,
    data: Annotated[str, typer.Option(help="File, folder or Hub id of the examples.")],
    split: Annotated[str, typer.Option(help="Which split of it.")] = "train",
    format: Annotated[str, typer.Option(help="Data format; auto reads the columns.")] = "auto",
    template: options.Template = "auto",
    system: options.SystemPrompt = None,
    max_length: Annotated[int, typer.Option(help="Longest example, in tokens.")] = 1024,
    on_long: Annotated[
        Literal["error", "drop", "truncate"], typer.Option(help="What to do with longer ones.")
    ] = "error",
    generate: Annotated[int, typer.Option(help="Also answer this many examples.")] = 0,
    max_new_tokens: options.MaxNewTokens = 256,
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Loss and perplexity of MODEL on DATA; with --generate also exact match and valid Python."""
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
            "format": format,
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
