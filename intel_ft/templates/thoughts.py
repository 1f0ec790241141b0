"""Thoughts (`<think>...</think>`) in front of answers."""

import re

OPEN, CLOSE = "<think>", "</think>"
GAP = "\n\n"  # what models write after a thought; a template that drops thoughts may keep it
_THOUGHT = re.compile(r"\s*(?:<think>)?(.*?)</think>(.*)", re.DOTALL)
_EMPTY_THOUGHT = re.compile(r"\s*(?:<think>\s*)?</think>\s*")


def split_thought(answer: str) -> tuple[str, str] | None:
    """The thought and the rest of an answer that begins with one; None if it has none.

    A thought may lack `<think>`, as where the prompt of DeepSeek-R1 ends with it. The line breaks
    around both parts belong to the template. None, too, for further tags or tags elsewhere.
    """
    if CLOSE not in answer or not (match := _THOUGHT.fullmatch(answer)):
        return None
    if OPEN in match[1] + match[2] or CLOSE in match[2]:
        return None
    return match[1].strip("\n"), match[2].lstrip("\n")


def with_thought(thought: str, answer: str) -> str:
    """An answer with its thought in front, as `split_thought` finds it."""
    thought = thought.strip("\n")
    return f"{OPEN}\n{thought}\n{CLOSE}{GAP}{answer}"


def empty_thought_length(text: str) -> int:
    """Characters of an empty thought, and white space around it, at the start of an answer."""
    match = _EMPTY_THOUGHT.match(text)
    return match.end() if match else 0


def may_begin_empty_thought(text: str) -> bool:
    """Whether `text` is the start of an empty thought, of which more may follow."""
    written = "".join(text.split())
    return (OPEN + CLOSE).startswith(written) or CLOSE.startswith(written)
