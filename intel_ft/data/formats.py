"""What a row's columns mean: which format they are, and the conversation in each row; called from
data.prepare.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from intel_ft.data.sources import Rows
from intel_ft.errors import UserError

Role = Literal["system", "user", "assistant"]
Format = Literal["alpaca", "dolly", "prompt_completion", "question_answer", "messages", "text"]

# Format: (column of the user's words, optional column of their context, column of the answer).
_SINGLE_TURN: dict[Format, tuple[str, str | None, str]] = {
    "alpaca": ("instruction", "input", "output"),
    "dolly": ("instruction", "context", "response"),
    "prompt_completion": ("prompt", None, "completion"),
    "question_answer": ("question", None, "answer"),
}
_REQUIRED: dict[Format, tuple[str, ...]] = {
    **{name: (user, answer) for name, (user, _, answer) in _SINGLE_TURN.items()},
    "messages": ("messages",),
    "text": ("text",),
}
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn. `context` is what alpaca calls input: kept apart for templates that show it so."""

    role: Role
    content: str
    context: str = ""

    @property
    def whole(self) -> str:
        """Content and context in one, for templates that do not tell them apart."""
        return f"{self.content}\n\n{self.context}" if self.context else self.content


@dataclass(frozen=True)
class Conversation:
    """One example: turns, or ready-made `text` that carries its own template.

    messages: an optional system message, then user and assistant in turn, assistant last; empty
    when `text` is given.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None


def detect(
    columns: Sequence[str], requested: str, *, origin: str, nested: Sequence[str] = ()
) -> tuple[Format, str]:
    """The format of rows with these columns, and the reason for it as a sentence.

    requested: data.format, `auto` to recognise it. nested: columns that hold lists or mappings.
    Columns beyond those a format needs are fine. Raises UserError that lists what it saw and what
    it knows if no format or several formats fit, or if the requested one does not.
    """
    if requested != "auto":
        wanted = cast(Format, requested)
        if missing := [name for name in _REQUIRED[wanted] if name not in columns]:
            raise UserError(
                f"{origin}: data.format {wanted} needs {_plural(_REQUIRED[wanted])}, but"
                f" {' and '.join(missing)} is missing from the columns {', '.join(columns)}:"
                " rename columns, or set data.format: auto"
            )
        return wanted, "set in data.format"
    fitting = [name for name, needed in _REQUIRED.items() if set(needed) <= set(columns)]
    if len(fitting) == 1:
        needed = _plural(_REQUIRED[fitting[0]])
        verb = "is that of" if len(_REQUIRED[fitting[0]]) == 1 else "are those of"
        return fitting[0], f"{needed} {verb} {fitting[0]}"
    if fitting:
        raise UserError(
            f"{origin}: the columns {', '.join(columns)} fit {' and '.join(fitting)}: set"
            f" data.format to one of them"
        )
    known = "; ".join(f"{name} ({', '.join(needed)})" for name, needed in _REQUIRED.items())
    odd = [name for name in columns if name in nested]
    remedy = (
        f"{_plural(odd)} {'is' if len(odd) == 1 else 'are'} nested: flatten to one row an example"
        " with text columns such as instruction, input, output"
        if odd
        else "rename the columns to those of one of them"
    )
    raise UserError(
        f"{origin}: no known format has the columns {', '.join(columns)}; known are {known}:"
        f" {remedy}"
    )


def conversations(rows: Rows, format: Format) -> list[Conversation]:
    """The conversation of each row, in the rows' order.

    Raises UserError naming file, row (from 1) and column if a required cell is missing, empty or
    not text, or if messages are not [system,] user, assistant, ... ending with assistant.
    """
    if format == "text":
        return [
            Conversation(text=_text(rows, index, "text", text))
            for index, (text,) in enumerate(rows.cells(["text"]))
        ]
    if format == "messages":
        return [
            Conversation(_turns(rows, index, turns))
            for index, (turns,) in enumerate(rows.cells(["messages"]))
        ]
    user, context, answer = _SINGLE_TURN[format]
    found = []
    for index, (asked, given, said) in enumerate(rows.cells([user, context, answer])):
        _text(rows, index, user, asked)
        _text(rows, index, answer, said)
        if given is not None and not isinstance(given, str):
            raise _refused(rows, index, str(context), f"is {type(given).__name__}, not text")
        found.append(
            Conversation((Message("user", asked, given or ""), Message("assistant", said)))
        )
    return found


def _text(rows: Rows, index: int, column: str, value: object) -> str:
    if type(value) is str and (value and not value.isspace()):
        return value
    if value is None:
        raise _refused(rows, index, column, "is missing")
    if isinstance(value, str):
        raise _refused(rows, index, column, "is empty")
    raise _refused(rows, index, column, f"is {type(value).__name__}, not text")


def _turns(rows: Rows, index: int, turns: object) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        what = "is missing or empty" if not turns else "is not a list of {role, content}"
        raise _refused(rows, index, "messages", what)
    messages: list[Message] = []
    for position, turn in enumerate(turns):
        name = f"messages[{position}]"
        if not isinstance(turn, dict):
            raise _refused(rows, index, name, "is not a mapping with role and content")
        role = turn.get("role")
        if role not in _ROLES:
            raise _refused(
                rows, index, f"{name}.role", f"is {role!r}: known are {', '.join(_ROLES)}"
            )
        content = turn.get("content")
        if role == "system" and position == 0:
            if not isinstance(content, str | None):
                raise _refused(rows, index, f"{name}.content", "is not text")
            if content and not content.isspace():
                messages.append(Message("system", content))
            continue
        expected = "assistant" if messages and messages[-1].role == "user" else "user"
        if role != expected:
            raise _refused(
                rows,
                index,
                f"{name}.role",
                f"is {role} where {expected} is due: after an optional first system message, user"
                " and assistant take turns",
            )
        messages.append(Message(role, _text(rows, index, f"{name}.content", content)))
    if messages[-1:] == [] or messages[-1].role != "assistant":
        raise _refused(
            rows, index, "messages", "does not end with an assistant turn: nothing to learn from"
        )
    return tuple(messages)


def _refused(rows: Rows, index: int, column: str, what: str) -> UserError:
    return UserError(f"{rows.where(index)}: {column} {what}: correct or remove that row")


def _plural(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {' and '.join(names)}"
