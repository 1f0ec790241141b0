"""`intel-ft chat`."""

import typer

from intel_ft.cli import options


def run(
    source: options.SourceOrServer = None,
    server: options.ServerUrl = None,
    model: options.ServedModel = None,
    timeout: options.Timeout = 600,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    system: options.SystemPrompt = None,
    template: options.Template = "auto",
    base: options.Base = None,
    trust_remote_code: options.Trust = False,
) -> None:
    """Chat with MODEL or a server.

    /help lists the commands; exit or Ctrl-D quits.
    """
    from intel_ft.errors import UserError
    from intel_ft.inference.chat import Reply, chat, local_reply
    from intel_ft.runtimes.language_model import Sampling

    sampling = Sampling(
        max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed, tuple(stop or ())
    )
    if server:
        if source or base or template != "auto":
            raise UserError(
                "chat --server takes no MODEL, --base or --template: the server determines them"
            )
        client = options.open_server(server, model, timeout, template)
        reply: Reply = lambda talk, write: client.stream(  # noqa: E731
            tuple(talk.history), talk.system, sampling, write
        )
    else:
        source = options.require_source(source, model)
        loaded = options.load_alone(source, base=base, trust_remote_code=trust_remote_code)
        prompt_template, system = loaded.prompt_form(template, system)
        reply = local_reply(loaded.engine, prompt_template, sampling)
    chat(reply, system, write=lambda piece: typer.echo(piece, nl=False))
