"""Read prompts from a .txt or .jsonl file, one per line."""

import json
from pathlib import Path
from typing import Any

from intel_ft.conversations.from_rows import context_of, history_of, system_of
from intel_ft.conversations.unsupported import COLUMNS, holds_something
from intel_ft.errors import UserError
from intel_ft.sources.bad_rows import BadRow
from intel_ft.sources.read_errors import problem_at_start, problem_with
from intel_ft.templates.formats import THOUGHTS, TOOLS, Message

_REFUSED = {
    **COLUMNS,
    **dict.fromkeys(TOOLS, "tools are not supported in prompts: ask a server"),
    **dict.fromkeys(THOUGHTS, "a prompt has no reasoning"),
}
_PROMPT_KEYS = ("prompt", "instruction", "question")


def read_prompts(path: Path) -> list[tuple[Message, ...]]:
    """The messages of each prompt in a .txt or .jsonl file, in its order.

    A line of a .txt file is a prompt. A line of a .jsonl file is an object with `prompt`, with
    `instruction` or `question` (and `input` or `context`), or with `messages`, of which an answer
    at the end is left out. `system` and `history` are used as in training; other keys, such as an
    answer, are ignored. Empty lines are skipped.

    Raises UserError naming file and line, also for tools, media and other keys without which the
    prompt is another one.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file of prompts")
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(f"{path}: prompts must be in a .txt or .jsonl file, one per line")
    if path.is_file() and (problem := problem_at_start(path)):
        raise UserError(f"{path}: {problem}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: {problem_with(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    parse = _object if path.suffix == ".jsonl" else _plain
    # Not splitlines(), which also splits at U+2028, form feeds and others.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    prompts = [parse(line, f"{path} line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UserError(f"{path}: contains no prompt")
    return prompts


def _plain(line: str, where: str) -> tuple[Message, ...]:
    return (Message("user", line),)


def _object(line: str, where: str) -> tuple[Message, ...]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: invalid JSON ({error}): correct this line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be a JSON object with a prompt")
    for key, reason in _REFUSED.items():
        if holds_something(row.get(key)):
            raise UserError(f"{where}: {key}: {reason}")
    try:
        return _turns(row, where)
    except BadRow as problem:
        raise UserError(f"{where}: {problem}") from None


def _turns(row: dict[str, Any], where: str) -> tuple[Message, ...]:
    if "messages" in row:
        messages = _messages(row["messages"], where)
        system = () if messages[0].role == "system" else system_of(row)
        return _valid((*system, *messages), where)
    for key in _PROMPT_KEYS:
        if key in row:
            context = "" if key == "prompt" else context_of(row)
            earlier = (*system_of(row), *history_of(row.get("history")))
            prompt = Message("user", _text(row[key], key, where), context)
            return _valid((*earlier, prompt), where)
    raise UserError(f"{where}: needs one of the keys prompt, instruction, question and messages")


def _messages(turns: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{where}: messages must be a list of objects with role and content")
    if len(turns) > 1 and turns[-1].get("role") == "assistant":
        turns = turns[:-1]  # the answer of a row to train on
    roles = [turn.get("role") for turn in turns]
    dialog = roles[1:] if roles[:1] == ["system"] else roles
    alternating = ["user", "assistant"] * len(dialog)
    if not dialog or dialog != alternating[: len(dialog)] or dialog[-1] != "user":
        raise UserError(
            f"{where}: messages must be an optional system turn, then user and assistant in turn, "
            "ending with user or an answer to it; the roles are: "
            f"{', '.join(map(str, roles)) or 'none'}"
        )
    return tuple(
        Message(turn["role"], _text(turn.get("content"), "content", where)) for turn in turns
    )


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {key} must be text, and not empty")
    return value


def _valid(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """The messages; UserError for half of a surrogate pair, which JSON can hold and text cannot."""
    for message in messages:
        try:
            message.full_content.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: the {message.role}'s text contains an unpaired surrogate (\\ud8..)"
            ) from None
    return messages
