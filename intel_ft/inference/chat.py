"""The `Ask >` loop of a chat with a language model or server."""

import contextlib
from collections.abc import Callable

from intel_ft.errors import IntelFTError, UserError
from intel_ft.inference.chat_commands import ChatSession, run_command
from intel_ft.runtimes.language_model import LanguageModel, Sampling, Stream
from intel_ft.templates.formats import Message
from intel_ft.templates.prompt import prompt_tokens
from intel_ft.templates.template import Template

PROMPT = "Ask > "

Reply = Callable[[ChatSession, Stream], str]
"""Answers the last question of a session; may remove its oldest exchanges, in place."""


def read_line(prompt: str) -> str:
    """A line from the terminal or from piped input; raises EOFError at its end.

    readline gives line editing and history, and makes `input` print the prompt to stdout; without
    it CPython prints the prompt to stderr.
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
    """Answer line after line until `exit` or the end of input; a line with / is a command.

    `read(prompt)` returns a line or raises EOFError; `write` prints text as it arrives. The
    conversation is kept. Where a question cannot be answered (too long, server unreachable), the
    error is printed, the question removed, and the chat continues.
    """
    session = ChatSession(system_prompt)
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
            output = run_command(line, session)
            if output is None:
                return
            write(f"{output}\n")
            continue
        session.history.append(Message("user", line[1:] if line.startswith("//") else line))
        try:
            answer = reply(session, write)
        except IntelFTError as error:
            session.history.pop()
            write(f"({error})\n")
            continue
        write("\n")
        session.history.append(Message("assistant", answer))


def local_reply(model: LanguageModel, template: Template, sampling: Sampling) -> Reply:
    """Answers by `model`; the oldest exchanges are removed when its context window is full."""

    def reply(session: ChatSession, write: Stream) -> str:
        prompt = _fitting_prompt(model, template, session, sampling)
        return model.generate(prompt, sampling, write).text

    return reply


def _fitting_prompt(
    model: LanguageModel, template: Template, session: ChatSession, sampling: Sampling
) -> list[int]:
    """The prompt of `session`, whose oldest exchanges are removed until an answer fits.

    The answer is taken as `max_new_tokens`, or half the context window where that is less.

    Raises UserError if the last question alone leaves no room for a single token.
    """

    def form_prompt() -> list[int]:
        return prompt_tokens(model.tokenizer, template, tuple(session.history), session.system)

    prompt, window = form_prompt(), model.context_window
    if window is None:
        return prompt
    reserved = min(sampling.max_new_tokens, window // 2)
    while len(prompt) + reserved > window and len(session.history) > 1:
        del session.history[:2]
        prompt = form_prompt()
    if len(prompt) >= window:
        raise UserError(f"the question is too long: the model's context window is {window} tokens")
    return prompt
