"""`intel-ft chat`."""

import typer

from intel_ft.cli import options


def run(
    source: options.Source,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = 0,
    system: options.SystemPrompt = None,
    template: options.Template = "auto",
    trust_remote_code: options.Trust = False,
) -> None:
    """Talk to MODEL; `exit` or Ctrl-D leaves."""
    from intel_ft.inference.chat import chat
    from intel_ft.inference.language_model import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed)
    model, form, system = options.open_for_prompts(
        source, template, system, trust_remote_code=trust_remote_code
    )
    chat(model, form, system, sampling, write=lambda piece: typer.echo(piece, nl=False))
