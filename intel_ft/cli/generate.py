"""`intel-ft generate`."""

import sys
from typing import Annotated

import typer

from intel_ft.cli import options


def run(
    source: options.Source,
    prompt: Annotated[str, typer.Argument(help="What to ask; `-` reads it from stdin.")],
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = 0,
    system: options.SystemPrompt = None,
    template: options.Template = "auto",
    trust_remote_code: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Answer one prompt, formed as in training, with torch or OpenVINO as MODEL needs."""
    from intel_ft.data.formats import Message
    from intel_ft.data.prompt import prompt_tokens
    from intel_ft.inference.language_model import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    model, form, system = options.open_for_prompts(
        source, template, system, trust_remote_code=trust_remote_code
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    tokens = prompt_tokens(model.tokenizer, form, (Message("user", text),), system)
    if json:
        completion = model.generate(tokens, sampling)
        options.show(
            {
                "text": completion.text,
                "new_tokens": len(completion.new_tokens),
                "seconds": completion.seconds,
                "stopped": completion.stopped,
            },
            True,
        )
        return
    model.generate(tokens, sampling, lambda piece: typer.echo(piece, nl=False))
    typer.echo()
