"""A list of turns, as OpenAI, ShareGPT, Axolotl and ms-swift write it, to messages."""

from collections.abc import Iterable, Mapping
from typing import Any

from intel_ft.data.bad_rows import BadRow
from intel_ft.data.formats import Message, Role
from intel_ft.data.unsupported import KEYS, holds_something

_ROLES: dict[object, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's name since o1; templates that know both treat them alike
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_TOOL_ROLES = ("tool", "function", "observation", "function_call", "tool_call", "ipython")
_TRAINED = ("weight", "train", "training", "loss")
_PLAIN = {"role", "content"}
_SHAREGPT = {"from", "value"}


def read_turns(
    turns: Iterable[tuple[str, object]], *, context: int, loss_on_all: bool, unused: set[str]
) -> tuple[tuple[Message, ...], int]:
    """The messages of named turns up to the last answer that is trained on, and how many follow it.

    turns: (name for errors, a mapping with role and content, or from and value). context: this many
    turns come first and are not trained on. loss_on_all: whether data.loss_on is all, with which no
    turn can be left out of the loss. unused: receives the keys that have a value but no effect.

    Raises BadRow unless turns are [system,] user, assistant, user, ... with text in each, and
    for keys that cannot be honoured.
    """
    messages: list[Message] = []
    for position, (name, turn) in enumerate(turns):
        if not isinstance(turn, dict):
            raise BadRow(f"{name} is not a mapping with role and content")
        plain = turn.keys() <= _PLAIN
        sharegpt = not plain and turn.get("role") is None
        role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
        role = _role(f"{name}.{role_key}", turn.get(role_key))
        trained = plain or _check_keys(turn, name, role, loss_on_all, unused)
        content = turn.get(content_key)
        if role == "system" and position == 0:
            if not isinstance(content, str | None):
                raise BadRow(f"{name}.{content_key} is not text")
            if content and not content.isspace():
                messages.append(Message("system", content))
            continue
        expected = "assistant" if messages and messages[-1].role == "user" else "user"
        if role != expected:
            raise BadRow(
                f"{name}.{role_key} is {role}, but {expected} is expected: after an optional system"
                " message, user and assistant alternate"
            )
        text = text_of(f"{name}.{content_key}", content)
        if role == "assistant":
            trained = trained and (loss_on_all or position >= context)
            messages.append(Message(role, text, trained=trained))
        else:
            messages.append(Message(role, text))
    used = _up_to_last_answer(messages)
    return used, len(messages) - len(used)


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
        raise BadRow(f"{name} is a list, not text (parts of a message are not supported yet)")
    raise BadRow(f"{name} is {type(value).__name__}, not text")


def _role(name: str, role: object) -> Role:
    if isinstance(role, str) and role in _ROLES:
        return _ROLES[role]
    if role in _TOOL_ROLES:
        raise BadRow(f"{name} is {role!r}: tools are not supported yet")
    raise BadRow(f"{name} is {role!r}; supported are system, user, assistant")


def _check_keys(
    turn: Mapping[str, Any], name: str, role: Role, loss_on_all: bool, unused: set[str]
) -> bool:
    """Whether this turn is trained on if it is an answer; BadRow for keys that are refused."""
    sharegpt = turn.get("role") is None
    for key in turn.keys() - (_SHAREGPT if sharegpt else _PLAIN) - {*_TRAINED, "masked"}:
        if holds_something(turn[key]):
            if key in KEYS:
                raise BadRow(f"{name}.{key}: {KEYS[key]}")
            unused.add(key)
    said = {key: _flag(f"{name}.{key}", turn[key]) for key in _TRAINED if turn.get(key) is not None}
    if turn.get("masked") is not None:
        said["masked"] = not _flag(f"{name}.masked", turn["masked"])
    if len(set(said.values())) > 1:
        raise BadRow(f"{name}: {' and '.join(said)} contradict each other")
    trained = all(said.values())
    if loss_on_all and not trained:
        raise BadRow(
            f"{name}.{next(iter(said))} takes this turn out of the loss, but data.loss_on is all"
        )
    if role != "assistant" and not loss_on_all and trained and said.keys() - {"weight", "masked"}:
        raise BadRow(f"{name}.{next(iter(said))}: turns of the {role} cannot be trained on")
    return trained


def _flag(name: str, value: object) -> bool:
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise BadRow(f"{name} is {value!r}; supported are 0, 1, false and true")


def _up_to_last_answer(messages: list[Message]) -> tuple[Message, ...]:
    """The messages without those that no trained answer follows: they have no part in the loss."""
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise BadRow("no turn is the assistant's, so there is nothing to learn")
    trained = [index for index in answers if messages[index].trained]
    if not trained:
        raise BadRow("no answer is trained on (weight, train, loss), so there is none to learn")
    return tuple(messages[: trained[-1] + 1])
