"""How a conversation is written down: spans of template, content and completion; called from
data.prepare and data.prompt.

A template only says which strings stand between the turns. What becomes a token, and which tokens
are supervised, follows from a span's kind (data.encode). Every built-in template ends an
assistant turn with the tokenizer's EOS, chatml too: what a base model knows as the end is what
stops it, and where `<|im_end|>` is the EOS, as in models made for chatml, that is the same.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from intel_ft.data.chat_template import Scaffold
from intel_ft.data.formats import Conversation, Format, Message
from intel_ft.data.spans import Marks, Span
from intel_ft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Template = Literal["llama2", "alpaca", "dolly", "chatml", "tokenizer", "none"]
Renderer = Callable[[Conversation], list[Span]]
_Writer = Callable[[tuple[Message, ...]], list[Span]]

# tatsu-lab/stanford_alpaca, train.py (PROMPT_DICT), with the newline after "Response:" that
# alpaca-lora and everyone since has added.
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)

_WITHOUT_CHAT_TEMPLATE: dict[Format, tuple[Template, str]] = {
    "alpaca": ("alpaca", "the data has alpaca's format"),
    "dolly": ("dolly", "the data has dolly's format"),
    "prompt_completion": ("none", "a prompt is taken to be complete as it is"),
    "question_answer": ("alpaca", "a question is an instruction of a kind"),
    "messages": ("chatml", "the data has messages"),
}


def choose(requested: str, format: Format, has_chat_template: bool) -> tuple[Template, str]:
    """The template for data of this format, and the reason for it as a sentence.

    requested: data.template, `auto` to choose it. Raises UserError if the request makes no sense.
    """
    if format == "text":
        if requested not in ("auto", "none"):
            raise UserError(
                f"data.template {requested}: ready-made text (column text) carries its own"
                " template: set data.template to none, or data.format to another format"
            )
        return "none", "ready-made text carries its own template"
    if requested == "tokenizer" and not has_chat_template:
        raise UserError(
            "data.template tokenizer: the tokenizer has no chat_template of its own: set"
            " data.template to chatml, llama2, alpaca, dolly or none"
        )
    if requested != "auto":
        return cast(Template, requested), "set in data.template"
    if has_chat_template:
        return "tokenizer", "the tokenizer has a chat_template, which servers will use too"
    template, why = _WITHOUT_CHAT_TEMPLATE[format]
    return template, f"the tokenizer has no chat_template, and {why}"


def renderer(
    template: Template,
    tokenizer: "PreTrainedTokenizerFast",
    marks: Marks,
    system_prompt: str | None,
) -> Renderer:
    """A function from a conversation to its spans.

    system_prompt: put first where a conversation has no system message. BOS comes first, once,
    if the tokenizer adds it by itself or the template writes it. Ready-made text that already
    begins with BOS or ends with EOS does not get a second one.
    """
    if template == "tokenizer":
        write: _Writer = Scaffold(tokenizer, marks).spans
    else:
        builtin = {
            "llama2": _llama2,
            "alpaca": _alpaca,
            "dolly": _dolly,
            "chatml": _chatml,
            "none": _none,
        }[template]
        write = partial(builtin, marks=marks)

    def render(conversation: Conversation) -> list[Span]:
        if conversation.text is not None:
            return _ready_made(conversation.text, marks)
        messages = conversation.messages
        if system_prompt and messages[0].role != "system":
            messages = (Message("system", system_prompt), *messages)
        return write(messages)

    return render


def _start(marks: Marks) -> list[Span]:
    return [Span(marks.bos, "start")] if marks.adds_bos and marks.bos else []


def _ready_made(text: str, marks: Marks) -> list[Span]:
    has_bos = bool(marks.bos) and text.lstrip().startswith(str(marks.bos))
    if has_bos:
        text = text.lstrip().removeprefix(str(marks.bos))
    if text.rstrip().endswith(marks.eos):
        text = text.rstrip().removesuffix(marks.eos)
    start = [Span(str(marks.bos), "start")] if has_bos else _start(marks)
    return [*start, Span(text, "text"), Span(marks.eos, "end")]


def _llama2(messages: tuple[Message, ...], marks: Marks) -> list[Span]:
    """`<s>[INST] <<SYS>>...<</SYS>> user [/INST] answer</s><s>[INST] user [/INST] answer</s>`.

    meta-llama/llama, llama/generation.py (chat_completion), which starts every exchange with BOS
    whatever the tokenizer does by itself. Its space before `</s>` is left out: EOS follows the
    answer at once, in every template.
    """
    spans: list[Span] = []
    system: list[Span] = []
    for message in messages:
        if message.role == "system":
            system = [
                Span("<<SYS>>\n", "template"),
                Span(message.content, "content"),
                Span("\n<</SYS>>\n\n", "template"),
            ]
        elif message.role == "user":
            if marks.bos and marks.bos != marks.eos:
                spans.append(Span(marks.bos, "start"))
            spans += [Span("[INST] ", "template"), *system, Span(message.whole, "content")]
            spans.append(Span(" [/INST] ", "template"))
            system = []
        else:
            spans += [Span(message.content, "completion"), Span(marks.eos, "end")]
    return spans


def _alpaca(messages: tuple[Message, ...], marks: Marks) -> list[Span]:
    """Stanford's wording; a system message takes the place of its opening sentence."""
    system = messages[0].role == "system"
    turns = messages[1:] if system else messages
    spans = _start(marks)
    if system:
        spans.append(Span(messages[0].content, "content"))
    else:
        spans.append(Span(ALPACA_WITH_INPUT if turns[0].context else ALPACA, "template"))
    for message in turns:
        if message.role == "assistant":
            spans += [Span(message.content, "completion"), Span(marks.eos, "end")]
            continue
        spans += [Span("\n\n### Instruction:\n", "template"), Span(message.content, "content")]
        if message.context:
            spans += [Span("\n\n### Input:\n", "template"), Span(message.context, "content")]
        spans.append(Span("\n\n### Response:\n", "template"))
    return spans


def _dolly(messages: tuple[Message, ...], marks: Marks) -> list[Span]:
    """`### Instruction`, `### Context` (if any), `### Answer`, as in philschmid's dolly-15k guides.

    A system message stands first, and an empty line between it and the instruction.
    """
    spans = _start(marks)
    gap = ""
    for message in messages:
        if message.role == "system":
            spans.append(Span(message.content, "content"))
        elif message.role == "assistant":
            spans += [Span(message.content, "completion"), Span(marks.eos, "end")]
        else:
            spans.append(Span(f"{gap}### Instruction\n", "template"))
            spans.append(Span(message.content, "content"))
            if message.context:
                spans += [Span("\n\n### Context\n", "template"), Span(message.context, "content")]
            spans.append(Span("\n\n### Answer\n", "template"))
        gap = "\n\n"
    return spans


def _chatml(messages: tuple[Message, ...], marks: Marks) -> list[Span]:
    """`<|im_start|>role\\ncontent<|im_end|>\\n`, with EOS for `<|im_end|>` after the assistant."""
    spans = _start(marks)
    gap = ""
    for message in messages:
        spans.append(Span(f"{gap}<|im_start|>{message.role}\n", "template"))
        if message.role == "assistant":
            spans += [Span(message.content, "completion"), Span(marks.eos, "end")]
            gap = "\n"
        else:
            spans.append(Span(message.whole, "content"))
            gap = "<|im_end|>\n"
    return spans


def _none(messages: tuple[Message, ...], marks: Marks) -> list[Span]:
    """A prompt, and the completion directly behind it; an empty line after a system message."""
    spans = _start(marks)
    for message in messages:
        if message.role == "assistant":
            spans += [Span(message.content, "completion"), Span(marks.eos, "end")]
        elif message.role == "system":
            spans += [Span(message.content, "content"), Span("\n\n", "template")]
        else:
            spans.append(Span(message.whole, "content"))
    return spans
