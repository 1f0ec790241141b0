"""A list of turns, as OpenAI, ShareGPT, Axolotl and ms-swift write it, to messages."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from intel_ft.conversations.tools import calls_text, join_calls, tools_text
from intel_ft.conversations.unsupported import KEYS, holds_something
from intel_ft.sources.bad_rows import BadRow
from intel_ft.templates.formats import TOOLS, Message, Role
from intel_ft.templates.thoughts import split_thought, with_thought

_ROLES: dict[object, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's name since o1; templates that know both treat them alike
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",  # LLaMA-Factory: the turn's text is the call
    "tool_call": "assistant",  # ms-swift
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_CALL_ROLES = ("function_call", "tool_call")
_TRAINED = ("weight", "train", "training", "loss")
_PLAIN = {"role", "content"}
_SHAREGPT = {"from", "value"}
_CALLS = ("tool_calls", "function_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Turns:
    """messages: up to the last one that is trained on; after: how many follow it."""

    messages: tuple[Message, ...]
    tools: str
    after: int


@dataclass(frozen=True)
class TurnRules:
    """How turns are read.

    roles: those that are trained on. loss_on: as data.loss_on. unused: receives the keys that have
    a value but no effect.
    """

    roles: tuple[str, ...]
    loss_on: str
    unused: set[str]


def read_turns(turns: Iterable[tuple[str, object]], *, context: int, rules: TurnRules) -> Turns:
    """The messages of named turns, up to the last one that is trained on.

    turns: (name for errors, a mapping with role and content, or from and value). context: this many
    turns come first and are not trained on, except where data.loss_on is all.

    Raises BadRow for turns without text, for keys that cannot be honoured, and where no turn is
    trained on.
    """
    messages: list[Message] = []
    tools = ""
    empty = {}
    for position, (name, turn) in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"{name} is not a mapping with role and content")
        if given := next((key for key in TOOLS if holds_something(turn.get(key))), None):
            tools = same_tools(tools, tools_text(f"{name}.{given}", turn[given]), name)
        message, said_nothing = _message(name, turn, rules, position < context)
        if message is None:
            continue
        before = messages[-1] if messages else None
        if _is_call(turn) and before and before.calls and not message.content:
            # Parallel calls in turns of their own.
            messages[-1] = replace(before, calls=join_calls(before.calls, message.calls))
            continue
        if said_nothing:
            empty[len(messages)] = said_nothing
        messages.append(message)
    used = _up_to_last_trained(messages, rules)
    for place, problem in empty.items():
        if place < len(used) and used[place].in_loss:
            raise BadRow(problem)
    return Turns(used, tools, len(messages) - len(used))


def same_tools(one: str, other: str, name: str) -> str:
    """The tools that a row gives in two places; BadRow if they differ."""
    if one and other and one != other:
        raise BadRow(f"{name}: its tools differ from those given elsewhere in the row")
    return one or other


def text_of(name: str, value: object) -> str:
    """The text of a cell; an integer becomes its digits. BadRow if it has no text."""
    if type(value) is str and (value and not value.isspace()):
        return value
    if value is None:
        raise BadRow(f"{name} is missing")
    if isinstance(value, str):
        raise BadRow(f"{name} is empty")
    if type(value) is int:
        return str(value)
    if isinstance(value, bool | float):
        raise BadRow(f"{name} is {value!r}, not text: write it as text, in quotes")
    if isinstance(value, list):
        raise BadRow(f"{name} is a list, not text")
    raise BadRow(f"{name} is {type(value).__name__}, not text")


def _message(
    name: str, turn: Mapping[str, Any], rules: TurnRules, in_context: bool
) -> tuple[Message | None, str]:
    """The turn's message, and what is wrong with it if it is trained on and says nothing.

    None for a system message without text.
    """
    plain = turn.keys() <= _PLAIN
    role_key, content_key = _keys_of(turn)
    role = _role(f"{name}.{role_key}", turn.get(role_key))
    trained = None if plain else _check_keys(turn, name, role, rules)
    content, problem = _content(f"{name}.{content_key}", turn.get(content_key), role, rules)
    if role == "system" and problem:
        return None, ""
    if role == "user" and problem:
        raise BadRow(problem)
    calls = ""
    if role == "assistant" and (not plain or _is_call(turn)):
        content, calls = _calls(turn, name, content)
        content = _with_reasoning(turn, name, content)
    if in_context and rules.loss_on != "all" and role == "assistant":
        trained = False
    elif trained is None and (role in rules.roles) != (role == "assistant"):
        trained = role in rules.roles
    says_something = content or calls or role == "tool"
    return (
        Message(
            role,
            content,
            trained=trained,
            calls=calls,
            name=str(turn.get("name") or "") if role == "tool" else "",
            call_id=str(turn.get("tool_call_id") or "") if role == "tool" else "",
        ),
        "" if says_something else problem,
    )


def _keys_of(turn: Mapping[str, Any]) -> tuple[str, str]:
    return ("from", "value") if turn.get("role") is None and "from" in turn else ("role", "content")


def _is_call(turn: Mapping[str, Any]) -> bool:
    return turn.get(_keys_of(turn)[0]) in _CALL_ROLES


def _content(name: str, value: object, role: Role, rules: TurnRules) -> tuple[str, str]:
    """The text of a turn, and what is wrong with it if it has none."""
    if role == "tool" and isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False), ""
    if isinstance(value, list) and not value:
        value = None
    if value is None or (isinstance(value, str) and (not value or value.isspace())):
        return "", f"{name} is {'missing' if value is None else 'empty'}"
    if isinstance(value, list) and role == "tool" and not all(map(_is_part, value)):
        return json.dumps(value, ensure_ascii=False), ""
    if isinstance(value, list):
        value = "\n".join(_part(f"{name}[{n}]", one, rules) for n, one in enumerate(value))
    return text_of(name, value), ""


def _is_part(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "type" in value)


def _part(name: str, part: object, rules: TurnRules) -> str:
    """The text of one part of a message."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict):
        for key in part.keys() - {"type", "text", "thinking"}:
            if key in (*_TRAINED, "masked") and part[key] is not None:
                raise BadRow(
                    f"{name}.{key}: an answer is trained on as a whole or not at all: move {key} to"
                    " the message"
                )
            if holds_something(part[key]) or part[key] is False:
                rules.unused.add(f"content[].{key}")
        if kind in ("text", "input_text", "output_text", None) and isinstance(
            part.get("text"), str
        ):
            return str(part["text"])
        if kind == "thinking" and isinstance(part.get("thinking"), str):
            return with_thought(part["thinking"], "").rstrip("\n")
    raise BadRow(f"{name} is a part of type {kind!r}: only text can be trained on")


def _calls(turn: Mapping[str, Any], name: str, content: str) -> tuple[str, str]:
    """The words of an answer and its tool calls."""
    if _is_call(turn):
        thought = split_thought(content)
        calls = calls_text(
            f"{name}.{_keys_of(turn)[1]}", content if thought is None else thought[1]
        )
        return "" if thought is None else with_thought(thought[0], ""), calls
    given = [key for key in _CALLS if holds_something(turn.get(key))]
    if len(given) > 1:
        raise BadRow(f"{name}: {' and '.join(given)} both hold calls: keep tool_calls")
    return content, calls_text(f"{name}.{given[0]}", turn[given[0]]) if given else ""


def _with_reasoning(turn: Mapping[str, Any], name: str, content: str) -> str:
    """The answer with the thought that is in a key of its own in front of it."""
    found = {
        str(turn[key]).strip("\n"): key for key in _REASONING if holds_something(turn.get(key))
    }
    if not found:
        return content
    if len(found) > 1:
        raise BadRow(f"{name}: {' and '.join(found.values())} differ: keep one of them")
    thought, key = next(iter(found.items()))
    if not isinstance(turn[key], str):
        raise BadRow(f"{name}.{key} is {type(turn[key]).__name__}, not text")
    if (own := split_thought(content)) is not None:
        if own[0].strip() == thought.strip():
            return content
        raise BadRow(f"{name}: {key} and the <think> block of the answer differ: keep one of them")
    return with_thought(thought, content)


def _role(name: str, role: object) -> Role:
    if isinstance(role, str) and role in _ROLES:
        return _ROLES[role]
    raise BadRow(f"{name} is {role!r}; supported are {', '.join(map(str, _ROLES))}")


def _check_keys(turn: Mapping[str, Any], name: str, role: Role, rules: TurnRules) -> bool | None:
    """Whether the turn says that it is trained on, or not; None if it says nothing.

    BadRow for keys that are refused.
    """
    known = {*_keys_of(turn), *_TRAINED, "masked", *TOOLS}
    if role == "assistant":
        known |= {*_CALLS, *_REASONING}
    if role == "tool":
        known |= {"name", "tool_call_id"}
    for key in turn.keys() - known:
        if key in KEYS and holds_something(turn[key]):
            raise BadRow(f"{name}.{key}: {KEYS[key]}")
        if holds_something(turn[key]) or turn[key] is False:
            rules.unused.add(key)
    said = {key: _flag(f"{name}.{key}", turn[key]) for key in _TRAINED if turn.get(key) is not None}
    if turn.get("masked") is not None:
        said["masked"] = not _flag(f"{name}.masked", turn["masked"])
    if not said:
        return None
    if len(set(said.values())) > 1:
        raise BadRow(f"{name}: {' and '.join(said)} contradict each other")
    trained = all(said.values())
    if rules.loss_on == "all" and not trained:
        raise BadRow(
            f"{name}.{next(iter(said))} takes this turn out of the loss, but data.loss_on is all"
        )
    if trained and role != "assistant" and not said.keys() - {"weight", "masked"}:
        return None  # OpenAI's weight: 1 and LLaMA-Factory's masked: false are everywhere
    return trained


def _flag(name: str, value: object) -> bool:
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise BadRow(f"{name} is {value!r}; supported are 0, 1, false and true")


def _up_to_last_trained(messages: list[Message], rules: TurnRules) -> tuple[Message, ...]:
    """The messages without those that no trained turn follows: they have no part in the loss."""
    trained = [index for index, message in enumerate(messages) if message.in_loss]
    if not any(message.role in rules.roles for message in messages) and not trained:
        what = " or the ".join(rules.roles)
        raise BadRow(f"no turn is the {what}'s, so there is nothing to learn")
    if not trained:
        raise BadRow(
            "no answer is trained on (its weight, train or loss excludes it), so there is nothing"
            " to learn"
        )
    used = messages[: trained[-1] + 1]
    if rules.loss_on == "last":
        used = [replace(m, trained=False) if m.in_loss else m for m in used[:-1]] + used[-1:]
    return tuple(used)
