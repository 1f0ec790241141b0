"""Prompt tokens for generation: exactly those that precede a completion in training."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from intel_ft.errors import UserError
from intel_ft.templates.control_tokens import completion_controls
from intel_ft.templates.encode import SpanEncoder
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.spans import SpecialTokens, special_tokens_of
from intel_ft.templates.template import Template, renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


PromptEncoder = Callable[[tuple[Message, ...]], list[int]]


def prompt_encoder(
    tokenizer: "PreTrainedTokenizerFast",
    template: Template,
    system_prompt: str | None = None,
    *,
    tools: str = "",
) -> PromptEncoder:
    """A function from messages to token ids, like `prompt_tokens`, for many prompts."""
    special = special_tokens_of(tokenizer)
    render = renderer(template, tokenizer, special, system_prompt)
    encoder = SpanEncoder(tokenizer, special)
    controls = completion_controls(tokenizer.backend_tokenizer.get_added_tokens_decoder())

    def encode(messages: tuple[Message, ...]) -> list[int]:
        # Any completion serves: templates do not see it, and it is encoded separately.
        spans = render(Conversation((*messages, Message("assistant", "x")), tools=tools))
        answer = max(index for index, span in enumerate(spans) if span.kind == "completion")
        first = answer
        while first and spans[first - 1].kind == "written":
            first -= 1
        # Control tokens that the model would write first (gpt-oss's channel) are its prompt here.
        opened = "".join(span.text for span in spans[first:answer])
        start = answer if any(text in opened for text in controls.values()) else first
        context = [span._replace(trained=False) for span in spans[:start]]
        tokens, learnt = encoder.encode([[*context, *spans[start:]]])[0]
        length = len(tokens) if learnt.all() else int(np.flatnonzero(~learnt)[-1]) + 1
        return [int(token) for token in tokens[:length]]

    return encode


def prompt_tokens(
    tokenizer: "PreTrainedTokenizerFast",
    template: Template,
    messages: tuple[Message, ...],
    system_prompt: str | None = None,
    *,
    tools: str = "",
) -> list[int]:
    """Token ids of a conversation up to the start of the assistant's answer, including BOS.

    messages, tools: as in `Conversation`, but without the answer. template: the one in use
    (`Prepared.template`). Control tokens spelled in a message are ordinary text, as in training.

    Raises UserError if the template does not support these roles.
    """
    return prompt_encoder(tokenizer, template, system_prompt, tools=tools)(messages)


def prompt_text(
    template: Template, messages: tuple[Message, ...], system_prompt: str | None = None
) -> str:
    """A single question in a built-in template, as text without BOS, for a server that tokenizes.

    Raises UserError for a conversation of several turns: answers end with a token of the
    tokenizer, which only the server has.
    """
    if sum(message.role == "user" for message in messages) > 1 or template == "tokenizer":
        raise UserError(
            "a prompt of several turns needs the server's own chat template: omit --template"
        )
    special = SpecialTokens(bos=None, eos="</s>", adds_bos=False, added=())
    render = renderer(template, cast("PreTrainedTokenizerFast", None), special, system_prompt)
    spans = render(Conversation((*messages, Message("assistant", "x"))))
    return "".join(span.text for span in spans if span.kind in ("template", "content"))
