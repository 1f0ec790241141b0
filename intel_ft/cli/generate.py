"""`intel-ft generate`."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intel_ft.cli import options

if TYPE_CHECKING:
    from intel_ft.api import LoadedModel
    from intel_ft.inference.batch_output import Engine
    from intel_ft.runtimes.language_model import Sampling


def run(
    source: options.SourceOrServer = None,
    prompt: Annotated[
        str | None, typer.Argument(help="Prompt to answer. `-` reads it from stdin.")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "-i",
            help="File with one prompt per line: .txt, or .jsonl with prompt, "
            "instruction, question or messages.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON Lines file to write. Default: stdout."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Reuse the answers in OUTPUT.partial and generate the missing ones."
        ),
    ] = False,
    n: Annotated[
        int, typer.Option("--n", "-n", min=1, help="Number of answers to each prompt.")
    ] = 1,
    batch_size: Annotated[
        int,
        typer.Option(min=1, help="Prompts in a batch, or concurrent requests with --server."),
    ] = 8,
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
    json: options.Json = False,
) -> None:
    """Generate answers to a prompt or a file of prompts.

    Uses MODEL, in torch or OpenVINO, or a server.
    """
    from intel_ft.errors import UserError
    from intel_ft.inference.batch_output import (
        answer_record,
        make_requests,
        model_files,
        write_answers,
    )
    from intel_ft.inference.engines import local_engine, server_engine
    from intel_ft.inference.prompts import read_prompts
    from intel_ft.runtimes.language_model import Sampling
    from intel_ft.templates.formats import Message

    if server and prompt is None:  # then the one argument is the prompt
        source, prompt = None, source
    if (prompt is None) == (prompt_file is None):
        raise UserError("give either a prompt or a file of prompts with --input")
    if n > 1 and not temperature:
        raise UserError(
            "--n above 1 needs --temperature: at temperature 0 all answers are the same"
        )
    if resume and not output:
        raise UserError("--resume needs --output, the file to continue")
    sampling = Sampling(
        max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed, tuple(stop or ())
    )
    text = _read_prompt() if prompt == "-" else str(prompt)
    prompts = read_prompts(prompt_file) if prompt_file else [(Message("user", text),)]
    single = not prompt_file and not output and n == 1
    engine: Engine
    if server:
        if source or base:
            raise UserError(
                "generate --server takes no MODEL or --base: name the model on it with --model"
            )
        client = options.open_server(server, model, timeout, template)
        source = f"{client.url} {model}"
        engine = server_engine(
            lambda request: client.answer(request.messages, system, sampling, request.seed),
            batch_size,
        )
    else:
        source = options.require_source(source, model)
        loaded = options.load_alone(source, base=base, trust_remote_code=trust_remote_code)
        prompt_template, system = loaded.prompt_form(template, system)
        if single:
            _answer_one(loaded, str(text), prompt_template, system, sampling, json)
            return
        engine = local_engine(loaded.engine, prompt_template, system, sampling, batch_size)
    requests = make_requests(prompts, n, seed)
    if output:
        settings: dict[str, Any] = {"asked": source, "system": system, "template": template}
        settings |= dataclasses.asdict(sampling) | {"n": n, "stop": list(sampling.stop)}
        settings["files"] = [] if server else model_files(source, base)
        asked_now = write_answers(output, requests, engine, settings, resume=resume)
        options.show(
            {"written": str(output), "answers": len(requests), "asked_now": asked_now}, json
        )
        return
    for request, answer in engine(requests):
        if single and not json:
            typer.echo(answer.text)
        else:
            options.show(answer_record(request, answer), True)


def _answer_one(
    model: "LoadedModel",
    prompt: str,
    template: str,
    system: str | None,
    sampling: "Sampling",
    json: bool,
) -> None:
    """Stream the answer to one prompt, or print it as one JSON object."""
    from intel_ft.api import generate

    completion = generate(
        model,
        prompt,
        template=template,
        system_prompt=system,
        sampling=sampling,
        stream=None if json else lambda piece: typer.echo(piece, nl=False),
    )
    if not json:
        typer.echo()
        return
    options.show(
        {
            "text": completion.text,
            "new_tokens": len(completion.new_tokens),
            "seconds": completion.seconds,
            "stopped": completion.stopped,
        },
        True,
    )


def _read_prompt() -> str:
    text = sys.stdin.read()
    if not text.strip():
        from intel_ft.errors import UserError

        raise UserError("no prompt on standard input")
    return text
