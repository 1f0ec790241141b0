"""The tokens to generate from: exactly those that training had in front of a completion; called
from inference and evaluation.
"""

from typing import TYPE_CHECKING

from intel_ft.data.encode import SpanEncoder
from intel_ft.data.formats import Conversation, Message
from intel_ft.data.spans import marks_of
from intel_ft.data.templates import Template, renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
    marks = marks_of(tokenizer)
    # Any completion will do: a template sees none of it, and it is encoded on its own.
    conversation = Conversation((*messages, Message("assistant", "x")))
    spans = renderer(template, tokenizer, marks, system_prompt)(conversation)
    encoder = SpanEncoder(tokenizer, marks)
    answer = max(index for index, span in enumerate(spans) if span.kind == "completion")
    whole = encoder.encode([spans]).tokens
    behind = encoder.encode([spans[answer:]]).tokens
    return [int(id) for id in whole[: len(whole) - len(behind)]]
