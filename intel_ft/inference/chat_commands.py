"""What a line that begins with / does in a chat; called from inference.chat."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from intel_ft.data.formats import Message

HELP = """\
/help           this list
/clear          forget what was said; the system prompt stays
/system [TEXT]  show the system prompt, or set it and forget what was said; /system - takes none
/undo           forget the last question and its answer
/save FILE      append the conversation to FILE as a line of messages, the form that train reads
/exit           leave; so do exit and Ctrl-D
A question that begins with / is written //..."""


@dataclass
class Talk:
    """A conversation under way: turns so far, and the system prompt in front of them."""

    system: str | None
    history: list[Message] = field(default_factory=list)


def run_command(line: str, talk: Talk) -> str | None:
    """Carry out `line`, which begins with /; what to show, or None to leave."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    shown: str | None = f"(no command {name}: /help lists them)"
    match name.lower():
        case "/exit" | "/quit":
            shown = None
        case "/help":
            shown = HELP
        case "/clear":
            talk.history.clear()
            shown = "(forgotten)"
        case "/system":
            shown = _system(rest, talk)
        case "/undo":
            del talk.history[-2:]
            shown = f"({len(talk.history) // 2} exchanges left)"
        case "/save":
            shown = _save(rest, talk)
    return shown


def _system(text: str, talk: Talk) -> str:
    if not text:
        return talk.system or "(no system prompt)"
    talk.system = None if text == "-" else text
    talk.history.clear()
    return "(set; what was said is forgotten)"


def _save(name: str, talk: Talk) -> str:
    if not name:
        return "(say /save FILE)"
    if not talk.history:
        return "(nothing was said yet)"
    system = [Message("system", talk.system)] if talk.system else []
    turns = [{"role": one.role, "content": one.whole} for one in (*system, *talk.history)]
    try:
        with Path(name).expanduser().open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    except OSError as error:
        return f"({name}: cannot be written: {error.strerror})"
    return f"({len(talk.history) // 2} exchanges appended to {name})"
