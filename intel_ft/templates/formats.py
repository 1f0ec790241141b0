"""Data formats: which one the columns have, what each column means, and the conversation of a row.

`conversations.from_rows` reads the conversations; `conversations.unsupported` has what is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, cast

from intel_ft.errors import UserError
from intel_ft.sources.spellings import as_override, hint, shown, suggested_columns

Role = Literal["system", "user", "assistant", "tool"]
Format = Literal[
    "alpaca",
    "dolly",
    "prompt_completion",
    "question_answer",
    "messages",
    "text",
    "segments",
    "tokens",
    "pairs",
    "judged",
]
"""`pairs` and `judged` are those of preference data (data.preferences)."""

SINGLE_TURN: dict[Format, tuple[str, str]] = {
    "alpaca": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
}
"""Format: (column of the user's words, column of the answer)."""
CONTEXT = ("input", "context")
"""Columns of which one may hold more of the user's words, in the formats below."""
_WITH_CONTEXT = ("alpaca", "dolly", "question_answer")
_REQUIRED: dict[Format, tuple[str, ...]] = {
    **SINGLE_TURN,
    "messages": ("messages",),
    "text": ("text",),
    "segments": ("segments",),
    "tokens": ("input_ids",),
}
READY_MADE: tuple[Format, ...] = ("text", "segments", "tokens")
"""Formats that hold their template already."""
TOOLS = ("tools", "functions")
"""Columns of which one may hold the tools that the assistant may call."""
THOUGHTS = ("reasoning_content", "thinking")
"""Columns of which one may hold the thought in front of the answer, in single-turn formats."""
_OPTIONAL = (*CONTEXT, *TOOLS, *THOUGHTS, "history", "system", "labels", "attention_mask")
NAMES = {*chain.from_iterable(_REQUIRED.values()), *_OPTIONAL}
"""All columns that a format uses."""


@dataclass(frozen=True)
class Message:
    """One turn. `context` is alpaca's `input`, kept separate for templates that need it.

    content: an answer's begins with its thought, if it has one: `<think>...</think>`. trained:
    whether the turn is trained on; None where its role decides, which means answers are. calls: the
    tool calls of an answer, JSON text as in OpenAI's `tool_calls` with the arguments as an object.
    name, call_id: of the tool whose result a message of the role tool holds, and of its call.
    """

    role: Role
    content: str
    context: str = ""
    trained: bool | None = None
    calls: str = ""
    name: str = ""
    call_id: str = ""

    @property
    def full_content(self) -> str:
        """Content and context joined, for templates without a separate place for the context."""
        return f"{self.content}\n\n{self.context}" if self.context else self.content

    @property
    def in_loss(self) -> bool:
        """Whether the turn is trained on."""
        return self.role == "assistant" if self.trained is None else self.trained


@dataclass(frozen=True)
class Conversation:
    """One example: turns, or what is already written: text, segments of text, or token ids.

    messages: empty unless the example is turns; the last one is trained on. tools: JSON text of the
    list of tools, as OpenAI's API takes it; empty without any. text: ready-made, with its template.
    segments: ready-made, too; the flag says whether the text is trained on. tokens: ids and, for
    each, whether it is trained on.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: str = ""
    segments: tuple[tuple[str, bool], ...] = ()
    tokens: tuple[tuple[int, ...], tuple[bool, ...]] | None = None


def detect_format(
    columns: Sequence[str], requested: str, *, origin: str, nested: Sequence[str] = ()
) -> tuple[Format, str]:
    """The format of rows with these columns, and the reason for the choice.

    requested: data.format; `auto` detects it. nested: columns that hold lists or mappings. Columns
    that a format does not need are ignored. Raises UserError with the columns and the supported
    formats if no format or several formats match, or if the requested one does not.
    """
    listed = "messages" not in columns and {"prompt", "completion"} <= set(nested)
    if listed and requested in ("auto", "prompt_completion"):
        return "messages", "columns prompt and completion hold lists of messages"
    if requested != "auto":
        data_format = cast(Format, requested)
        required = _REQUIRED[data_format]
        if missing := [name for name in required if name not in columns]:
            raise UserError(
                f"{origin}: data.format={requested} needs {_columns(required)}, but"
                f" {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; the"
                f" columns are {', '.join(map(shown, columns))}: set data.columns, or set"
                " data.format to auto"
            )
        return data_format, "set in data.format"
    matching = [name for name, needed in _REQUIRED.items() if set(needed) <= set(columns)]
    if len(matching) > 1 and "tokens" in matching:
        matching.remove("tokens")  # what they were made of is there, too
    if len(matching) == 1:
        required = _REQUIRED[matching[0]]
        verb = "identifies" if len(required) == 1 else "identify"
        return matching[0], f"{_columns(required)} {verb} {matching[0]}"
    if matching:
        raise UserError(
            f"{origin}: the columns {', '.join(columns)} match {' and '.join(matching)}: set"
            f" data.format to one of them"
        )
    supported = "; ".join(f"{name} ({', '.join(needed)})" for name, needed in _REQUIRED.items())
    raise UserError(
        f"{origin}: no supported format has the columns {', '.join(map(shown, columns))};"
        f" supported are"
        f" {supported}: {_remedy(columns, nested)}"
    )


def columns_of(data_format: Format, columns: Sequence[str]) -> tuple[str, ...]:
    """Those of `columns` that a format uses, the required ones first."""
    used = _REQUIRED.get(data_format, ())
    if data_format == "messages" and "messages" not in columns:
        used = SINGLE_TURN["prompt_completion"]  # lists of messages
    if data_format in _WITH_CONTEXT:
        used += CONTEXT
    if data_format in SINGLE_TURN:
        used += ("history", *THOUGHTS)
    if data_format == "messages" or data_format in SINGLE_TURN:
        used += ("system", *TOOLS)
    if data_format == "tokens":
        used += ("labels", "attention_mask")
    return tuple(name for name in used if name in columns)


def describe_unused(unused: Sequence[str], data_format: Format) -> str:
    """The columns and keys in `unused`, with those of the format that they may stand for."""
    used = columns_of(data_format, tuple(NAMES))
    return f"not used: {', '.join(hint(name, used) for name in unused)}"


def _remedy(columns: Sequence[str], nested: Sequence[str]) -> str:
    if suggested := suggested_columns(columns, list(_REQUIRED.values())):
        return f"did you mean {as_override(suggested)}?"
    if found := [name for name in columns if name in nested]:
        return (
            f"{_columns(found)} {'is' if len(found) == 1 else 'are'} nested: flatten the data to"
            " one row per example, with text columns such as instruction, input, output"
        )
    return "name the columns in data.columns, such as {instruction: question, output: reply}"


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {' and '.join(names)}"
