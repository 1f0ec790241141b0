"""The `Ask >` loop over any language model or server; called from cli.chat."""

import contextlib
from collections.abc import Callable

from intel_ft.data.formats import Message
from intel_ft.data.prompt import prompt_tokens
from intel_ft.data.templates import Template
from intel_ft.errors import IntelFTError, UserError
from intel_ft.inference.chat_commands import Talk, run_command
from intel_ft.runtimes.language_model import LanguageModel, Sampling, Stream

PROMPT = "Ask > "

Reply = Callable[[Talk, Stream], str]
"""Answers the last question of a talk; may forget its oldest exchanges, in place."""


def read_line(prompt: str) -> str:
    """A line from the terminal or from piped input; raises EOFError at its end.

    readline gives editing and recall, and makes `input` show the prompt on stdout: CPython without
    it puts the prompt on stderr.
    """
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401
    return input(prompt)


def chat(
    reply: Reply,
    system_prompt: str | None,
    *,
    read: Callable[[str], str] = read_line,
    write: Stream,
) -> None:
    """Answer line after line until `exit` or the end of input; / begins a command.

    `read(prompt)` returns a line or raises EOFError; `write` shows text as it comes. What was said
    is kept. A question that cannot be answered (too long, a server that is gone) is told and
    forgotten; the talk goes on.
    """
    talk = Talk(system_prompt)
    while True:
        try:
            line = read(PROMPT).strip()
        except EOFError:
            write("\n")
            return
        if line.lower() == "exit":
            return
        if not line:
            continue
        if line.startswith("/") and not line.startswith("//"):
            shown = run_command(line, talk)
            if shown is None:
                return
            write(f"{shown}\n")
            continue
        talk.history.append(Message("user", line[1:] if line.startswith("//") else line))
        try:
            answer = reply(talk, write)
        except IntelFTError as error:
            talk.history.pop()
            write(f"({error})\n")
            continue
        write("\n")
        talk.history.append(Message("assistant", answer))


def local_reply(model: LanguageModel, template: Template, sampling: Sampling) -> Reply:
    """Answers by `model`; the oldest exchanges are forgotten when its window is full."""

    def reply(talk: Talk, write: Stream) -> str:
        prompt = _fitting_prompt(model, template, talk, sampling)
        return model.generate(prompt, sampling, write).text

    return reply


def _fitting_prompt(
    model: LanguageModel, template: Template, talk: Talk, sampling: Sampling
) -> list[int]:
    """The prompt of `talk`, from whose front exchanges are dropped (in place) until an answer
    fits behind it: `max_new_tokens`, or half the window where that is less.

    Raises UserError if even the last question alone leaves no room for a single token.
    """

    def form_prompt() -> list[int]:
        return prompt_tokens(model.tokenizer, template, tuple(talk.history), talk.system)

    prompt, window = form_prompt(), model.context_window
    if window is None:
        return prompt
    wanted = min(sampling.max_new_tokens, window // 2)
    while len(prompt) + wanted > window and len(talk.history) > 1:
        del talk.history[:2]
        prompt = form_prompt()
    if len(prompt) >= window:
        raise UserError(f"too long: the model's context window is {window} tokens")
    return prompt
