"""Other names that datasets give to the columns of a format, and data.columns, which maps them."""

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from intel_ft.errors import UserError
from intel_ft.sources.rows import Rows

_PARTNERS = {
    "question": "answer",
    "query": "answer",
    "problem": "answer",
    "instruction": "output",
    "prompt": "completion",
    "input": "completion",
    "inputs": "completion",
    "input_text": "completion",
    "text_input": "completion",
    "source": "completion",
    "user": "completion",
    "human": "completion",
}
"""Names of the user's words, and what the answer is called in the format nearest to each."""
_USER = {"output": "instruction", "answer": "question", "completion": "prompt"}
_ANSWERS = (
    *("output", "response", "completion", "answer", "reply", "target", "outputs", "targets"),
    *("solution", "assistant", "responses", "answers", "output_text", "target_text"),
)
_MESSAGES = ("conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_TEXT = ("content", "document", "body")
_OPTIONAL_NAMES = ("input", "context", "system", "history")
_OPTIONAL = {
    "system_prompt": "system",
    "system_message": "system",
    "chat_history": "history",
    "query_context": "context",
}
"""Other names of columns that a format uses where they are there."""
_PLAIN_YAML = re.compile(r"(?!(?:y|n|yes|no|on|off|true|false|null)$)[A-Za-z_]\w*", re.IGNORECASE)


def suggested_columns(
    columns: Sequence[str], formats: Sequence[Sequence[str]]
) -> dict[str, str] | None:
    """What data.columns could say so that `columns` fit one of `formats`; None without an idea.

    formats: the required columns of each. The names are compared without case and spaces first,
    then as misspelled, then with known other names.
    """
    by_name = {_plain(column): column for column in columns}
    for required in formats:
        if all(name in by_name for name in required):
            return _with_optional(required, by_name)
    for required in formats:
        close = {name: _misspelled(name, by_name) for name in required if name not in by_name}
        if len(required) > 1 and all(close.values()):
            return _with_optional(required, by_name | {n: c for n, c in close.items() if c})
    if messages := [by_name[name] for name in _MESSAGES if name in by_name]:
        return {"messages": messages[0]}
    users = [name for name in _PARTNERS if name in by_name]
    for user in users:
        for answer in _ANSWERS:
            if answer in by_name and answer != user:
                partner = _PARTNERS[user]
                pair = {_USER[partner]: by_name[user], partner: by_name[answer]}
                pair |= {_OPTIONAL[name]: by_name[name] for name in _OPTIONAL if name in by_name}
                return {name: column for name, column in pair.items() if name != column}
    if not users and (texts := [by_name[name] for name in _TEXT if name in by_name]):
        return {"text": texts[0]}
    return None


def _misspelled(name: str, by_name: Mapping[str, str]) -> str | None:
    """The column whose name differs from `name` by a letter or two; None if there is none."""
    close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.8)
    return by_name[close[0]] if close else None


def shown(column: str) -> str:
    """A column's name in a message; in quotes if white space at its ends would not be seen."""
    return column if column == column.strip() and column else json.dumps(column)


def as_override(columns: Mapping[str, str]) -> str:
    """`columns` as an override of data.columns; names that YAML would change are in quotes."""
    pairs = [
        f"{name}: {column if _PLAIN_YAML.fullmatch(column) else json.dumps(column)}"
        for name, column in columns.items()
    ]
    return f"data.columns={{{', '.join(pairs)}}}"


def hint(column: str, used: Collection[str]) -> str:
    """An unused column's name, with the one of the columns `used` by the format that it may be."""
    plain = _plain(column)
    known = _OPTIONAL.get(plain, plain)
    if known == column or known not in used:
        return column
    return f"{column} (did you mean {as_override({known: column})}?)"


def rename(rows: Rows, columns: Mapping[str, str], known: Collection[str]) -> Rows:
    """`rows` with the columns named as `columns` (data.columns: name here to name there) says.

    known: the names here. A column that already has a name given to another one is no longer seen.
    Raises UserError for a name that is not known, and for a column that is not there or is given
    two names.
    """
    if not columns:
        return rows
    for name, column in columns.items():
        if name not in known:
            if column in known:
                turned = as_override({column: name})
                raise UserError(f"data.columns: the name here comes first: write {turned}")
            close = difflib.get_close_matches(name, known, n=1)
            remedy = (
                f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            )
            raise UserError(f"data.columns: no format has a column {name}: {remedy}")
        if column not in rows.columns:
            close = difflib.get_close_matches(column, rows.columns, n=1)
            has = ", ".join(map(shown, rows.columns))
            remedy = f"did you mean {shown(close[0])}?" if close else f"it has {has}"
            raise UserError(f"{rows.source}: data.columns: no column {column} for {name}: {remedy}")
    new = {column: name for name, column in columns.items()}
    if len(new) < len(columns):
        raise UserError(
            f"{rows.source}: data.columns: two names have the same column: give each its own"
        )
    hidden = [name for name in columns if name in rows.columns and name not in new]
    kept = [column for column in rows.columns if column not in hidden]
    return replace(
        rows,
        columns=tuple(new.get(column, column) for column in kept),
        nested=tuple(new.get(column, column) for column in rows.nested if column in kept),
        table=rows.table.select_columns(kept).rename_columns(
            {column: name for column, name in new.items() if column != name}
        ),
    )


def _with_optional(required: Sequence[str], by_name: Mapping[str, str]) -> dict[str, str]:
    names = (*required, *_OPTIONAL_NAMES)
    return {name: by_name[name] for name in names if by_name.get(name, name) != name}


def _plain(column: str) -> str:
    return column.strip().lower().replace(" ", "_")
