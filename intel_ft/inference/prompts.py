"""Prompts from a file: a line each; called from cli.generate."""

import json
from pathlib import Path
from typing import Any

from intel_ft.data.formats import Message
from intel_ft.errors import UserError

_QUESTIONS = (("prompt", None), ("instruction", "input"), ("question", None))
_ROLES = ("system", "user", "assistant")


def read_prompts(path: Path) -> list[tuple[Message, ...]]:
    """The messages of each prompt in a .txt or .jsonl file, in its order.

    A line of a .txt file is a prompt; a line of a .jsonl file is an object with `prompt`, with
    `instruction` (and `input` or `context`), with `question`, or with `messages` that end with a
    user's; other keys, an answer say, are left alone. Empty lines are skipped.

    Raises UserError naming file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of prompts") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"{path}: prompts come in a .txt or a .jsonl file, one a line")
    parse = _object if path.suffix == ".jsonl" else _plain
    # Not splitlines(), which also parts at U+2028, form feeds and others.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    prompts = [parse(line, f"{path} line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UserError(f"{path}: holds no prompt")
    return prompts


def _plain(line: str, where: str) -> tuple[Message, ...]:
    return (Message("user", line),)


def _object(line: str, where: str) -> tuple[Message, ...]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is broken JSON ({error}): correct that line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: is not an object with a prompt")
    if "messages" in row:
        return _messages(row["messages"], where)
    for key, context in _QUESTIONS:
        if key in row:
            given = row.get(context or "") or row.get("context", "") if context else ""
            return (Message("user", _text(row[key], key, where), _text(given, "input", where, "")),)
    raise UserError(f"{where}: has none of prompt, instruction, question and messages")


def _messages(turns: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{where}: messages is not a list of role and content")
    roles = [turn.get("role") for turn in turns]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    due = ["user", "assistant"] * len(talk)
    if not talk or talk != due[: len(talk)] or talk[-1] != "user":
        raise UserError(
            f"{where}: messages are not an optional system, then user and assistant in turn, "
            f"a user's last: {', '.join(map(str, roles))}"
        )
    return tuple(
        Message(turn["role"], _text(turn.get("content"), "content", where)) for turn in turns
    )


def _text(value: Any, key: str, where: str, empty: str | None = None) -> str:
    if empty is not None and value in (None, ""):
        return empty
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key} is not text, or empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {key} holds half of a surrogate pair (\\ud8..)") from None
    return value
