"""The `Ask >` loop over any language model; called from cli.chat."""

import contextlib
from collections.abc import Callable

from intel_ft.data.formats import Message
from intel_ft.data.prompt import prompt_tokens
from intel_ft.data.templates import Template
from intel_ft.inference.language_model import LanguageModel, Sampling, Stream

PROMPT = "Ask > "


def read_line(prompt: str) -> str:
    """A line from the terminal or from piped input; raises EOFError at its end.

    readline gives editing and recall, and makes `input` show the prompt on stdout: CPython without
    it puts the prompt on stderr.
    """
    with contextlib.suppress(ImportError):  # not on Windows
        import readline  # noqa: F401
    return input(prompt)


def chat(
    model: LanguageModel,
    template: Template,
    system_prompt: str | None,
    sampling: Sampling,
    *,
    read: Callable[[str], str] = read_line,
    write: Stream,
) -> None:
    """Answer line after line until `exit` or the end of input.

    `read(prompt)` returns a line or raises EOFError; `write` shows text as it comes. What was said
    is kept; the oldest exchanges are forgotten when the model's window is full.
    """

    def form_prompt(history: list[Message]) -> list[int]:
        return prompt_tokens(model.tokenizer, template, tuple(history), system_prompt)

    history: list[Message] = []
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
        history.append(Message("user", line))
        prompt = _fitting_prompt(form_prompt, history, sampling, model.context_window)
        if prompt is None:
            history.pop()
            write(f"(too long: the model's context window is {model.context_window} tokens)\n")
            continue
        completion = model.generate(prompt, sampling, write)
        write("\n")
        history.append(Message("assistant", completion.text))


def _fitting_prompt(
    form_prompt: Callable[[list[Message]], list[int]],
    history: list[Message],
    sampling: Sampling,
    window: int | None,
) -> list[int] | None:
    """The prompt of `history`, from whose front exchanges are dropped (in place) until an answer
    fits behind it: `max_new_tokens`, or half the window where that is less.

    None if even the last question alone leaves no room for a single token.
    """
    prompt = form_prompt(history)
    if window is None:
        return prompt
    wanted = min(sampling.max_new_tokens, window // 2)
    while len(prompt) + wanted > window and len(history) > 1:
        del history[:2]
        prompt = form_prompt(history)
    return prompt if len(prompt) < window else None
