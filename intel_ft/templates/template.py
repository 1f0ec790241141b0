"""Prompt templates: a conversation becomes spans of template, content and completion.

A template only determines the strings between the turns. What becomes a token, and which tokens
are supervised, follows from a span's kind (data.encode). Every built-in template ends an assistant
turn with the tokenizer's EOS, chatml too: a base model stops at the EOS it was pretrained with. In
models made for chatml, `<|im_end|>` is the EOS, so there the result is the same.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from intel_ft.errors import UserError
from intel_ft.templates.chat_render import TemplateProblem
from intel_ft.templates.chat_template import ChatTemplate
from intel_ft.templates.formats import Conversation, Format, Message
from intel_ft.templates.spans import Span, SpecialTokens, without_loss_on

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Template = Literal["llama2", "alpaca", "dolly", "chatml", "tokenizer", "none"]
Renderer = Callable[[Conversation], list[Span]]
_Writer = Callable[[Conversation], list[Span]]

# tatsu-lab/stanford_alpaca, train.py (PROMPT_DICT), with the newline after "Response:" that
# alpaca-lora added and later projects kept.
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)

_WITHOUT_CHAT_TEMPLATE: dict[Format, tuple[Template, str]] = {
    "alpaca": ("alpaca", "the data is in alpaca format"),
    "dolly": ("dolly", "the data is in dolly format"),
    "prompt_completion": ("none", "the prompts are used as they are"),
    "question_answer": ("alpaca", "a question is used as an instruction"),
    "messages": ("chatml", "the data consists of messages"),
    "pairs": ("chatml", "answers are compared in conversations"),
    "judged": ("chatml", "answers are judged in conversations"),
}
_READY: dict[str, str] = {
    "text": "ready-made text already contains its template",
    "segments": "ready-made segments already contain their template",
    "tokens": "the data is tokenized",
}


def choose_template(
    requested: str, data_format: Format, has_chat_template: bool
) -> tuple[Template, str]:
    """The template for data of this format, and the reason for the choice.

    requested: data.template; `auto` selects one. Raises UserError if the requested template cannot
    be used with this data or tokenizer.
    """
    if reason := _READY.get(data_format):
        if requested not in ("auto", "none"):
            raise UserError(
                f"data.template={requested}: {reason} (data.format is {data_format}): set"
                " data.template to none, or data.format to another format"
            )
        return "none", reason
    if requested == "tokenizer" and not has_chat_template:
        raise UserError(
            "data.template=tokenizer: the tokenizer has no chat_template: set data.template to"
            " chatml, llama2, alpaca, dolly or none"
        )
    if requested != "auto":
        return cast(Template, requested), "set in data.template"
    if has_chat_template:
        return "tokenizer", "the tokenizer has a chat_template, which inference servers use too"
    template, reason = _WITHOUT_CHAT_TEMPLATE[data_format]
    return template, f"the tokenizer has no chat_template, and {reason}"


def renderer(
    template: Template,
    tokenizer: "PreTrainedTokenizerFast",
    special: SpecialTokens,
    system_prompt: str | None,
) -> Renderer:
    """A function from a conversation to its spans.

    system_prompt: used as the system message of conversations that have none. The spans start with
    exactly one BOS if the tokenizer adds it or the template writes it. Ready-made text that already
    begins with BOS or ends with EOS does not get a second one.
    """
    if template == "tokenizer":
        return _rendered(ChatTemplate(tokenizer, special).spans, special, system_prompt)
    return built_in_renderer(template, special, system_prompt)


def built_in_renderer(
    template: Template, special: SpecialTokens, system_prompt: str | None
) -> Renderer:
    """As `renderer`, for every template but the tokenizer's own; needs no tokenizer."""
    builtin = {
        "llama2": _llama2,
        "alpaca": _alpaca,
        "dolly": _dolly,
        "chatml": _chatml,
        "none": _none,
    }[template]
    return _rendered(partial(_built_in, template, builtin, special), special, system_prompt)


def _rendered(write: _Writer, special: SpecialTokens, system_prompt: str | None) -> Renderer:
    def render(conversation: Conversation) -> list[Span]:
        if conversation.text is not None:
            return _ready_made(conversation.text, special)
        if conversation.segments:
            return [Span(text, "text", trained) for text, trained in conversation.segments]
        return write(with_system_prompt(conversation, system_prompt))

    return render


def require_built_in(template: Template, conversation: Conversation) -> None:
    """Raise TemplateProblem for what the built-in templates have no place for."""
    if problem := _not_built_in(conversation):
        raise TemplateProblem(
            f"{problem}, for which data.template={template} has no place: use a model whose"
            " tokenizer has a chat_template, and data.template=tokenizer"
        )


def _built_in(
    template: Template,
    write: Callable[[tuple[Message, ...], SpecialTokens], list[Span]],
    special: SpecialTokens,
    conversation: Conversation,
) -> list[Span]:
    require_built_in(template, conversation)
    messages = conversation.messages
    spans = write(messages, special)
    trained = [message.in_loss for message in messages if message.role == "assistant"]
    return spans if all(trained) else without_loss_on(spans, trained)


def _not_built_in(conversation: Conversation) -> str | None:
    """What of a conversation no built-in template has a place for."""
    if conversation.tools:
        return "the row has tools"
    messages = conversation.messages
    if any(message.calls or message.role == "tool" for message in messages):
        return "a turn is a tool's call or result"
    if any(message.in_loss and message.role != "assistant" for message in messages):
        return "a turn other than an answer is trained on"
    if any(message.role == "system" for message in messages[1:]):
        return "a system message follows other turns"
    dialog = [message.role for message in messages if message.role != "system"]
    if dialog != ["user", "assistant"] * (len(dialog) // 2):
        return "user and assistant do not alternate"
    return None


def with_system_prompt(conversation: Conversation, system_prompt: str | None) -> Conversation:
    """The conversation, with `system_prompt` in front where it has no system message."""
    messages = conversation.messages
    if system_prompt and messages and messages[0].role != "system":
        system = Message("system", system_prompt)
        return replace(conversation, messages=(system, *messages))
    return conversation


def _start(special: SpecialTokens) -> list[Span]:
    return [Span(special.bos, "start")] if special.adds_bos and special.bos else []


def _ready_made(text: str, special: SpecialTokens) -> list[Span]:
    has_bos = bool(special.bos) and text.lstrip().startswith(str(special.bos))
    if has_bos:
        text = text.lstrip().removeprefix(str(special.bos))
    if text.rstrip().endswith(special.eos):
        text = text.rstrip().removesuffix(special.eos)
    start = [Span(str(special.bos), "start")] if has_bos else _start(special)
    return [*start, Span(text, "text"), Span(special.eos, "end")]


def _llama2(messages: tuple[Message, ...], special: SpecialTokens) -> list[Span]:
    """`<s>[INST] <<SYS>>...<</SYS>> user [/INST] answer</s><s>[INST] user [/INST] answer</s>`.

    Source: meta-llama/llama, llama/generation.py (chat_completion), which starts every exchange
    with BOS, whether or not the tokenizer adds it. Its space before `</s>` is left out: in every
    template here, EOS directly follows the answer.
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
            if special.bos and special.bos != special.eos:
                spans.append(Span(special.bos, "start"))
            spans += [Span("[INST] ", "template"), *system, Span(message.full_content, "content")]
            spans.append(Span(" [/INST] ", "template"))
            system = []
        else:
            spans += [Span(message.content, "completion"), Span(special.eos, "end")]
    return spans


def _alpaca(messages: tuple[Message, ...], special: SpecialTokens) -> list[Span]:
    """Stanford Alpaca's prompt; a system message replaces its opening sentence."""
    system = messages[0].role == "system"
    turns = messages[1:] if system else messages
    spans = _start(special)
    if system:
        spans.append(Span(messages[0].content, "content"))
    else:
        spans.append(Span(ALPACA_WITH_INPUT if turns[0].context else ALPACA, "template"))
    for message in turns:
        if message.role == "assistant":
            spans += [Span(message.content, "completion"), Span(special.eos, "end")]
            continue
        spans += [Span("\n\n### Instruction:\n", "template"), Span(message.content, "content")]
        if message.context:
            spans += [Span("\n\n### Input:\n", "template"), Span(message.context, "content")]
        spans.append(Span("\n\n### Response:\n", "template"))
    return spans


def _dolly(messages: tuple[Message, ...], special: SpecialTokens) -> list[Span]:
    """`### Instruction`, `### Context` (if any), `### Answer`, as in philschmid's dolly-15k guides.

    A system message comes first, separated from the instruction by an empty line.
    """
    spans = _start(special)
    gap = ""
    for message in messages:
        if message.role == "system":
            spans.append(Span(message.content, "content"))
        elif message.role == "assistant":
            spans += [Span(message.content, "completion"), Span(special.eos, "end")]
        else:
            spans.append(Span(f"{gap}### Instruction\n", "template"))
            spans.append(Span(message.content, "content"))
            if message.context:
                spans += [Span("\n\n### Context\n", "template"), Span(message.context, "content")]
            spans.append(Span("\n\n### Answer\n", "template"))
        gap = "\n\n"
    return spans


def _chatml(messages: tuple[Message, ...], special: SpecialTokens) -> list[Span]:
    """`<|im_start|>role\\ncontent<|im_end|>\\n`; EOS replaces `<|im_end|>` after the assistant."""
    spans = _start(special)
    gap = ""
    for message in messages:
        spans.append(Span(f"{gap}<|im_start|>{message.role}\n", "template"))
        if message.role == "assistant":
            spans += [Span(message.content, "completion"), Span(special.eos, "end")]
            gap = "\n"
        else:
            spans.append(Span(message.full_content, "content"))
            gap = "<|im_end|>\n"
    return spans


def _none(messages: tuple[Message, ...], special: SpecialTokens) -> list[Span]:
    """The prompt directly followed by the completion; an empty line follows a system message."""
    spans = _start(special)
    for message in messages:
        if message.role == "assistant":
            spans += [Span(message.content, "completion"), Span(special.eos, "end")]
        elif message.role == "system":
            spans += [Span(message.content, "content"), Span("\n\n", "template")]
        else:
            spans.append(Span(message.full_content, "content"))
    return spans
