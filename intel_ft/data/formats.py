"""Data formats: detects which one the columns have and reads a conversation from each row."""

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
    """One turn. `context` is alpaca's `input`, kept separate for templates that need it."""

    role: Role
    content: str
    context: str = ""

    @property
    def full_content(self) -> str:
        """Content and context joined, for templates without a separate place for the context."""
        return f"{self.content}\n\n{self.context}" if self.context else self.content


@dataclass(frozen=True)
class Conversation:
    """One example: turns, or ready-made `text` that already contains its template.

    messages: an optional system message, then user and assistant alternately, assistant last;
    empty if `text` is given.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None


def detect_format(
    columns: Sequence[str], requested: str, *, origin: str, nested: Sequence[str] = ()
) -> tuple[Format, str]:
    """The format of rows with these columns, and the reason for the choice.

    requested: data.format; `auto` detects it. nested: columns that hold lists or mappings. Columns
    that a format does not need are ignored. Raises UserError with the columns and the supported
    formats if no format or several formats match, or if the requested one does not.
    """
    if requested != "auto":
        data_format = cast(Format, requested)
        required = _REQUIRED[data_format]
        if missing := [name for name in required if name not in columns]:
            raise UserError(
                f"{origin}: data.format={requested} needs {_columns(required)}, but"
                f" {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; the"
                f" columns are {', '.join(columns)}: rename columns, or set data.format to auto"
            )
        return data_format, "set in data.format"
    matching = [name for name, needed in _REQUIRED.items() if set(needed) <= set(columns)]
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
    nested = [name for name in columns if name in nested]
    remedy = (
        f"{_columns(nested)} {'is' if len(nested) == 1 else 'are'} nested: flatten the data to one"
        " row per example, with text columns such as instruction, input, output"
        if nested
        else "rename the columns to those of a supported format"
    )
    raise UserError(
        f"{origin}: no supported format has the columns {', '.join(columns)}; supported are"
        f" {supported}: {remedy}"
    )


def conversations(rows: Rows, data_format: Format) -> list[Conversation]:
    """The conversation of each row, in the order of the rows.

    Raises UserError that names file, row (from 1) and column if a required cell is missing, empty
    or not text, or if messages are not [system,] user, assistant, ... ending with assistant.
    """
    if data_format == "text":
        return [
            Conversation(text=_text(rows, index, "text", text))
            for index, (text,) in enumerate(rows.cells(["text"]))
        ]
    if data_format == "messages":
        return [
            Conversation(_turns(rows, index, turns))
            for index, (turns,) in enumerate(rows.cells(["messages"]))
        ]
    columns = _SINGLE_TURN[data_format]
    user_column, context_column, answer_column = columns
    result = []
    for index, (user, context, answer) in enumerate(rows.cells(columns)):
        _text(rows, index, user_column, user)
        _text(rows, index, answer_column, answer)
        if context is not None and not isinstance(context, str):
            problem = f"is {type(context).__name__}, not text"
            raise _row_error(rows, index, str(context_column), problem)
        result.append(
            Conversation((Message("user", user, context or ""), Message("assistant", answer)))
        )
    return result


def _text(rows: Rows, index: int, column: str, value: object) -> str:
    if type(value) is str and (value and not value.isspace()):
        return value
    if value is None:
        raise _row_error(rows, index, column, "is missing")
    if isinstance(value, str):
        raise _row_error(rows, index, column, "is empty")
    raise _row_error(rows, index, column, f"is {type(value).__name__}, not text")


def _turns(rows: Rows, index: int, turns: object) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        what = "is missing or empty" if not turns else "is not a list of {role, content}"
        raise _row_error(rows, index, "messages", what)
    messages: list[Message] = []
    for position, turn in enumerate(turns):
        name = f"messages[{position}]"
        if not isinstance(turn, dict):
            raise _row_error(rows, index, name, "is not a mapping with role and content")
        role = turn.get("role")
        if role not in _ROLES:
            raise _row_error(
                rows, index, f"{name}.role", f"is {role!r}; supported are {', '.join(_ROLES)}"
            )
        content = turn.get("content")
        if role == "system" and position == 0:
            if not isinstance(content, str | None):
                raise _row_error(rows, index, f"{name}.content", "is not text")
            if content and not content.isspace():
                messages.append(Message("system", content))
            continue
        expected = "assistant" if messages and messages[-1].role == "user" else "user"
        if role != expected:
            raise _row_error(
                rows,
                index,
                f"{name}.role",
                f"is {role}, but {expected} is expected: after an optional system message, user and"
                " assistant alternate",
            )
        messages.append(Message(role, _text(rows, index, f"{name}.content", content)))
    if messages[-1:] == [] or messages[-1].role != "assistant":
        raise _row_error(
            rows,
            index,
            "messages",
            "does not end with an assistant turn, so there is nothing to learn",
        )
    return tuple(messages)


def _row_error(rows: Rows, index: int, column: str, problem: str) -> UserError:
    return UserError(f"{rows.where(index)}: {column} {problem}: correct or remove this row")


def _columns(names: Sequence[str]) -> str:
    return f"column{'s' if len(names) > 1 else ''} {' and '.join(names)}"
