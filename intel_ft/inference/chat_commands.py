"""The commands of a chat: lines that begin with /."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from intel_ft.templates.formats import Message

HELP = """\
/help           show this list
/clear          clear the conversation; the system prompt stays
/system [TEXT]  show the system prompt, or set it and clear the conversation; - removes it
/undo           remove the last question and its answer
/save FILE      append the conversation to FILE as one line of JSON, in a format that train reads
/exit           leave the chat, as do exit and Ctrl-D
To ask a question that begins with /, write //"""


@dataclass
class ChatSession:
    """The state of a chat: the system prompt, and the turns so far."""

    system: str | None
    history: list[Message] = field(default_factory=list)


def run_command(line: str, session: ChatSession) -> str | None:
    """Run the command in `line`; returns the text to print, or None to leave."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    output: str | None = f"(no command {name}: /help lists the commands)"
    match name.lower():
        case "/exit" | "/quit":
            output = None
        case "/help":
            output = HELP
        case "/clear":
            session.history.clear()
            output = "(conversation cleared)"
        case "/system":
            output = _system(rest, session)
        case "/undo":
            del session.history[-2:]
            output = f"({_exchanges(session)} left)"
        case "/save":
            output = _save(rest, session)
    return output


def _system(text: str, session: ChatSession) -> str:
    if not text:
        return session.system or "(no system prompt)"
    session.system = None if text == "-" else text
    session.history.clear()
    return f"(system prompt {'set' if session.system else 'removed'}; conversation cleared)"


def _save(name: str, session: ChatSession) -> str:
    if not name:
        return "(usage: /save FILE)"
    if not session.history:
        return "(nothing to save yet)"
    system = [Message("system", session.system)] if session.system else []
    turns = [{"role": one.role, "content": one.full_content} for one in (*system, *session.history)]
    try:
        with Path(name).expanduser().open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    except OSError as error:
        return f"({name}: cannot be written: {error.strerror})"
    return f"({_exchanges(session)} appended to {name})"


def _exchanges(session: ChatSession) -> str:
    count = len(session.history) // 2
    return "1 exchange" if count == 1 else f"{count} exchanges"
