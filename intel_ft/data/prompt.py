"""The tokens to generate from: exactly those that training had in front of a completion; called
from inference and evaluation.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from intel_ft.data.encode import SpanEncoder
from intel_ft.data.formats import Conversation, Message
from intel_ft.data.spans import Marks, marks_of
from intel_ft.data.templates import Template, renderer
from intel_ft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


PromptEncoder = Callable[[tuple[Message, ...]], list[int]]


def prompt_encoder(
    tokenizer: "PreTrainedTokenizerFast", template: Template, system_prompt: str | None = None
) -> PromptEncoder:
    """A function from messages to token ids, as `prompt_tokens`, for many prompts."""
    marks = marks_of(tokenizer)
    render = renderer(template, tokenizer, marks, system_prompt)
    encoder = SpanEncoder(tokenizer, marks)

    def encode(messages: tuple[Message, ...]) -> list[int]:
        # Any completion will do: a template sees none of it, and it is encoded on its own.
        spans = render(Conversation((*messages, Message("assistant", "x"))))
        answer = max(index for index, span in enumerate(spans) if span.kind == "completion")
        whole = encoder.encode([spans]).tokens
        behind = encoder.encode([spans[answer:]]).tokens
        return [int(id) for id in whole[: len(whole) - len(behind)]]

    return encode


def prompt_tokens(
    tokenizer: "PreTrainedTokenizerFast",
    template: Template,
    messages: tuple[Message, ...],
    system_prompt: str | None = None,
) -> list[int]:
    """Token ids of a conversation up to where the assistant's answer begins, BOS included.

    messages: as in `Conversation`, but ending with a user turn. template: the resolved one
    (`Prepared.template`). Control tokens spelled in a message are ordinary text here too.

    Raises UserError if the template cannot write these roles.
    """
    return prompt_encoder(tokenizer, template, system_prompt)(messages)


def prompt_text(
    template: Template, messages: tuple[Message, ...], system_prompt: str | None = None
) -> str:
    """A single question in a built-in template, as text without BOS, for a server that tokenizes.

    Raises UserError for a conversation of several turns: the tokens that end answers are the
    tokenizer's, which the server has.
    """
    if sum(message.role == "user" for message in messages) > 1 or template == "tokenizer":
        raise UserError(
            "a prompt of several turns needs the server's own chat template: leave --template out"
        )
    marks = Marks(bos=None, eos="</s>", adds_bos=False, added=())
    render = renderer(template, cast("PreTrainedTokenizerFast", None), marks, system_prompt)
    spans = render(Conversation((*messages, Message("assistant", "x"))))
    return "".join(span.text for span in spans if span.kind in ("template", "content"))
