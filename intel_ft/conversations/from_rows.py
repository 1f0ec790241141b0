"""Rows to conversations, with a report of every row, column and key that is not used."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from intel_ft.config_sections import DataConfig
from intel_ft.conversations.ready_made import read_segments, read_tokens
from intel_ft.conversations.tools import tools_text
from intel_ft.conversations.turns import TurnRules, read_turns, same_tools, text_of
from intel_ft.conversations.unsupported import (
    COLUMNS,
    columns_to_check,
    holds_something,
    refuse_media,
    refuse_preferences,
)
from intel_ft.sources.bad_rows import BadRow, BadRows, NothingUsable
from intel_ft.sources.rows import Rows
from intel_ft.sources.spellings import rename
from intel_ft.templates.formats import (
    CONTEXT,
    NAMES,
    SINGLE_TURN,
    THOUGHTS,
    TOOLS,
    Conversation,
    Format,
    Message,
    columns_of,
    detect_format,
)
from intel_ft.templates.thoughts import split_thought, with_thought


@dataclass(frozen=True)
class ReadData:
    """The conversations of a source's rows, and what of the rows they leave out.

    rows: the index of each conversation's row; unused: columns, and keys of turns (`messages[].x`),
    that hold something and have no effect; shortened: conversations that went on after the last
    answer that is trained on, and end there; bad: rows left out (data.on_bad: drop).
    """

    format: Format
    format_reason: str
    conversations: list[Conversation]
    rows: list[int]
    unused: tuple[str, ...]
    shortened: int
    bad: BadRows

    @property
    def untrained(self) -> int:
        """Answers that are in the context and not trained on."""
        return sum(
            message.role == "assistant" and not message.in_loss
            for conversation in self.conversations
            for message in conversation.messages
        )


def read_conversations(rows: Rows, data: DataConfig) -> ReadData:
    """The conversation of each row, in the order of the rows.

    Raises UserError for columns that fit no format, for data that must not be trained on, and, with
    data.on_bad=error, for rows that cannot be used: it counts them and names the first ones with
    file, row (from 1) and column.
    """
    taken = data.columns.keys() - data.columns.values()  # names that another column now has
    hidden = [column for column in rows.columns if column in taken]
    rows = rename(rows, data.columns, NAMES)
    refuse_media(rows)
    refuse_preferences(rows, data.format)
    data_format, reason = detect_format(
        rows.columns, data.format, origin=rows.source, nested=rows.nested
    )
    used = columns_of(data_format, rows.columns)
    checked = columns_to_check(data_format, rows.columns)
    unused_keys: set[str] = set()
    read = _reader(data_format, TurnRules(tuple(data.roles_to_train), data.loss_on, unused_keys))
    found: list[Conversation] = []
    indices: list[int] = []
    problems: dict[int, str] = {}
    shortened = 0
    for index, row in enumerate(_as_mappings(rows, (*used, *checked))):
        try:
            for column in checked:
                if holds_something(row[column]):
                    raise BadRow(f"{column}: {COLUMNS[column]}")
            conversation, after = read(row)
        except BadRow as problem:
            problems[index] = str(problem)
            continue
        found.append(conversation)
        indices.append(index)
        shortened += after > 0
    bad = BadRows(rows, problems)
    if problems and data.on_bad == "error":
        raise bad.error()
    if not found:
        raise NothingUsable(str(bad.error()), bad, 0)
    columns = [name for name in rows.columns if name not in used] + hidden
    return ReadData(
        data_format,
        reason,
        found,
        indices,
        (*columns, *(f"messages[].{key}" for key in sorted(unused_keys))),
        shortened,
        bad,
    )


def _as_mappings(rows: Rows, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for cells in rows.cells(columns):
        yield dict(zip(columns, cells, strict=True))


def _reader(
    data_format: Format, rules: TurnRules
) -> Callable[[dict[str, Any]], tuple[Conversation, int]]:
    """A function from a row to its conversation and the number of turns after its last answer."""
    if data_format == "text":
        return lambda row: (Conversation(text=text_of("text", row["text"])), 0)
    if data_format == "segments":
        return lambda row: (Conversation(segments=read_segments(row["segments"])), 0)
    if data_format == "tokens":
        return lambda row: (Conversation(tokens=read_tokens(row)), 0)
    if data_format == "messages":
        return lambda row: _messages(row, rules)
    user, answer = SINGLE_TURN[data_format]

    def single_turn(row: dict[str, Any]) -> tuple[Conversation, int]:
        messages = (
            *system_of(row),
            *history_of(row.get("history"), trained=None if rules.loss_on != "last" else False),
            Message("user", text_of(user, row[user]), context_of(row)),
            Message("assistant", _with_thought_of(row, text_of(answer, row[answer]))),
        )
        return Conversation(_of_roles(messages, rules), tools=tools_of(row)), 0

    return single_turn


def _of_roles(messages: tuple[Message, ...], rules: TurnRules) -> tuple[Message, ...]:
    """The messages with the roles in the loss that data.roles_to_train names."""
    if rules.roles == ("assistant",):
        return messages
    marked = [replace(m, trained=m.role in rules.roles) for m in messages]
    while marked and not marked[-1].in_loss:
        marked.pop()
    if not marked:
        raise BadRow("no turn has a role in data.roles_to_train, so there is nothing to learn")
    return tuple(marked)


def _messages(row: dict[str, Any], rules: TurnRules) -> tuple[Conversation, int]:
    """TRL writes a prompt's and a completion's turns in columns of their own."""
    turns: list[tuple[str, object]] = []
    for column in ("messages",) if "messages" in row else ("prompt", "completion"):
        value = row[column]
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = row[column] = _parsed(column, value)
        if not isinstance(value, list) or not value:
            what = "is not a list of {role, content}" if value else "is missing or empty"
            raise BadRow(f"{column} {what}")
        turns += [(f"{column}[{place}]", turn) for place, turn in enumerate(value)]
    context = 0 if "messages" in row else len(row["prompt"])
    read = read_turns(turns, context=context, rules=rules)
    messages = read.messages
    if system := system_of(row):
        if messages[0].role != "system":
            messages = (*system, *messages)
        elif messages[0].content != system[0].content:
            raise BadRow("system differs from the system message in messages")
    tools = same_tools(tools_of(row), read.tools, "messages")
    return Conversation(messages, tools=tools), read.after


def _parsed(column: str, value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{column} is text, but not JSON ({error})") from None


def tools_of(row: Mapping[str, Any]) -> str:
    """The tools in the columns of a row, as JSON text."""
    tools = ""
    for column in TOOLS:
        if holds_something(value := row.get(column)):
            tools = same_tools(tools, tools_text(column, value), column)
    return tools


def _with_thought_of(row: dict[str, Any], answer: str) -> str:
    """The answer with the thought that the row has in a column of its own."""
    found = [column for column in THOUGHTS if holds_something(row.get(column))]
    if not found:
        return answer
    if len(found) > 1 or split_thought(answer) is not None:
        where = found[1] if len(found) > 1 else "a <think> block of the answer"
        raise BadRow(f"{found[0]} and {where} both hold reasoning: keep one of them")
    return with_thought(text_of(found[0], row[found[0]]), answer)


def system_of(row: dict[str, Any]) -> tuple[Message, ...]:
    """The system message of a row that has one in its column `system`."""
    value = row.get("system")
    return (Message("system", text_of("system", value)),) if holds_something(value) else ()


def history_of(value: object, trained: bool | None = None) -> Iterator[Message]:
    """Earlier turns, as pairs of a question and its answer, which is trained on, too."""
    if not holds_something(value):
        return
    pairs = value if isinstance(value, list) else [None]
    for place, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow("history is not a list of pairs of a question and its answer")
        yield Message("user", text_of(f"history[{place}][0]", pair[0]))
        yield Message("assistant", text_of(f"history[{place}][1]", pair[1]), trained=trained)


def context_of(row: dict[str, Any]) -> str:
    """More of the user's words, from the column that holds them; BadRow if two do."""
    found = [column for column in CONTEXT if row.get(column) not in (None, "")]
    if len(found) > 1:
        raise BadRow("input and context both hold text: join them in one column")
    if not found:
        return ""
    value = row[found[0]]
    return value if isinstance(value, str) else text_of(found[0], value)
