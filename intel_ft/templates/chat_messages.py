"""Conversations as the messages that chat templates take, with their words or with placeholders.

Templates expect thoughts, arguments of tool calls and answers without words in different ways
(`Form`).
"""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.thoughts import CLOSE, GAP, OPEN, split_thought

# Private-use characters, which no template writes. The tabs show whether a template strips, the
# quotation mark whether it writes the text as JSON. Kinds: content, thought, verbatim (an answer
# with its thought as it is), name of a called function.
_SLOT = '\t\ue000"{}{}\ue001\t'
SLOTS = re.compile(r'(\t|\\t)?\ue000(\\?)"([0-9]+)([ctvn])([0-9]*)\ue001(\t|\\t)?')


class Shape(NamedTuple):
    """What a template's text around a message depends on.

    thought: an answer begins with one; empty: there are no words besides it. before, after: the
    line breaks around the words, because some templates strip these alone.
    """

    role: str
    thought: bool = False
    empty: bool = False
    before: str = ""
    after: str = ""
    calls: str = ""
    name: str = ""
    call_id: str = ""


class Signature(NamedTuple):
    """What a template's text around the words of a conversation depends on."""

    tools: str
    shapes: tuple[Shape, ...]


class Form(NamedTuple):
    """How a template expects what different templates expect in different ways.

    thought: in a key of that name, or as tags in the content; arguments_as_text: those of tool
    calls are JSON text instead of an object; empty: the content of an answer without words; ids:
    calls that have no id get one, as a server gives it.
    """

    thought: str
    arguments_as_text: bool
    empty: str
    ids: bool


def signature_of(conversation: Conversation) -> Signature:
    """The signature of a conversation of turns."""
    return Signature(conversation.tools, tuple(map(_shape_of, conversation.messages)))


def _shape_of(message: Message) -> Shape:
    thought, words = words_of(message)
    before = after = ""
    if words and (words[0] == "\n" or words[-1] == "\n"):
        rest = words.lstrip("\n")
        before = words[: len(words) - len(rest)]
        after = rest[len(rest.rstrip("\n")) :]
    return Shape(
        message.role,
        thought is not None,
        not words,
        before,
        after,
        message.calls,
        message.name,
        message.call_id,
    )


def words_of(message: Message) -> tuple[str | None, str]:
    """An answer's thought, None without one, and its words; of other messages the words alone."""
    if message.role == "assistant" and (found := split_thought(message.content)) is not None:
        return found
    return None, message.full_content


def messages_as_given(conversation: Conversation, form: Form) -> list[dict[str, Any]]:
    """The messages as the template takes them, with their words."""
    dicts = []
    shapes = _with_ids(signature_of(conversation).shapes, form)
    for shape, message in zip(shapes, conversation.messages, strict=True):
        thought, words = words_of(message)
        names = [call["function"]["name"] for call in json.loads(message.calls or "[]")]
        dicts.append(_message(shape, form, words, thought or "", names))
        if shape.thought and form.thought == "tags":
            dicts[-1]["content"] = message.full_content  # with its own white space
    return dicts


def json_text(text: str) -> str:
    """The text as it stands in JSON, without the quotation marks."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def placeholders(signature: Signature, form: Form) -> list[dict[str, Any]]:
    """The messages as the template takes them, with a slot for words, thoughts and called names."""
    messages = []
    for index, shape in enumerate(_with_ids(signature.shapes, form)):
        count = len(json.loads(shape.calls)) if shape.calls else 0
        names = [_SLOT.format(index, f"n{number}") for number in range(count)]
        words = f"{shape.before}{_SLOT.format(index, 'c')}{shape.after}"
        thought = _SLOT.format(index, "t")
        messages.append(_message(shape, form, words, thought, names))
    return messages


def _message(
    shape: Shape, form: Form, words: str, thought: str, names: list[str]
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": shape.role, "content": "" if shape.empty else words}
    if shape.role == "assistant" and shape.empty and form.empty != "text":
        message["content"] = None
        if form.empty == "absent":
            del message["content"]
    if shape.thought:
        if form.thought == "tags":
            words = "" if shape.empty else words
            message["content"] = f"{OPEN}{thought}{CLOSE}{GAP}{words}"
        else:
            message[form.thought] = thought
    if shape.calls:
        message["tool_calls"] = [
            _named(call, name, form)
            for call, name in zip(json.loads(shape.calls), names, strict=True)
        ]
    if shape.name:
        message["name"] = shape.name
    if shape.call_id:
        message["tool_call_id"] = shape.call_id
    return message


def _with_ids(shapes: tuple[Shape, ...], form: Form) -> tuple[Shape, ...]:
    """The shapes with an id of nine characters (Mistral's) for each call and its result."""
    if not form.ids:
        return shapes
    found: list[Shape] = []
    waiting: list[str] = []
    for index, shape in enumerate(shapes):
        if shape.calls:
            calls = json.loads(shape.calls)
            for number, call in enumerate(calls):
                call["id"] = f"call{index % 1000:03}{number % 100:02}"
            waiting = [call["id"] for call in calls]
            found.append(shape._replace(calls=json.dumps(calls, ensure_ascii=False)))
        elif shape.role == "tool" and waiting:
            found.append(shape._replace(call_id=waiting.pop(0)))
        else:
            found.append(shape)
    return tuple(found)


def _named(call: dict[str, Any], name: str, form: Form) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if form.arguments_as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {"name": name, "arguments": arguments}}


def forms_of(signature: Signature) -> Iterator[Form]:
    """The forms in which a template may expect this conversation, the most usual first."""
    shapes = signature.shapes
    answers = [shape for shape in shapes if shape.role == "assistant"]
    has_calls = any(shape.calls for shape in answers)
    empty = ("text", "null", "absent") if any(shape.empty for shape in answers) else ("text",)
    thoughts: tuple[str, ...] = ("tags",)
    if any(shape.thought for shape in answers):
        thoughts = ("reasoning_content", "thinking", "tags")
    switch = (False, True) if has_calls else (False,)
    for ids, one, as_text, thought in itertools.product(switch, empty, switch, thoughts):
        yield Form(thought, as_text, one, ids)
