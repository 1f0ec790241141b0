"""Thoughts (`<think>...</think>`) in answers, and what a chat template writes around them.

A server's prompt may open a thought (DeepSeek-R1), the template may write an empty one where an
answer has none (Qwen3), and most templates drop the thoughts of earlier turns. Used by
data.chat_template.
"""

import re
from typing import NamedTuple

OPEN, CLOSE = "<think>", "</think>"
GAP = "\n\n"  # what models write after a thought; a template that drops thoughts may keep it
_THOUGHT = re.compile(r"\s*(?:<think>)?(.*?)</think>(.*)", re.DOTALL)
_EMPTY_THOUGHT = re.compile(r"\s*(?:<think>\s*)?</think>\s*")
_OPENED = re.compile(r"<think>(\s*)\Z")
_CLOSED = re.compile(r"(?:</think>|<channel\|>)\s*\Z")  # a prompt with an empty thought (Gemma 4)
_EMPTY = re.compile(r"\s*(?:<think>\s*)?(?:</think>(\s*))?")


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


def empty_thought_length(text: str) -> int:
    """Characters of an empty thought, and white space around it, at the start of an answer."""
    match = _EMPTY_THOUGHT.match(text)
    return match.end() if match else 0


def may_begin_empty_thought(text: str) -> bool:
    """Whether `text` is the start of an empty thought, of which more may follow."""
    written = "".join(text.split())
    return (OPEN + CLOSE).startswith(written) or CLOSE.startswith(written)


class Opening(NamedTuple):
    """What a template shows of an answer: the text in front, and between thought and answer.

    between: None if the thought is not shown. has_thought: whether the answer has one. tagged:
    whether the template received the tags as part of the content.
    """

    before: str
    between: str | None
    has_thought: bool
    tagged: bool


class AnswerStart(NamedTuple):
    """How an answer starts: the prompt, then what the model writes: opened, thought, close.

    thought: whether the thought is written. trained: False for an answer whose prompt a server
    would not send: it is context. verbatim: the template knows no thoughts.
    """

    prompt: str
    opened: str = ""
    thought: bool = False
    close: str = ""
    trained: bool = True
    verbatim: bool = False


def opening(shown: Opening, tail: str, last: bool) -> AnswerStart | None:
    """How an answer starts, given the end of the prompt that a server sends.

    tail: what the template writes after the last question with `add_generation_prompt`. last:
    whether this is the conversation's last answer. Returns None if the template leaves out the
    thought of the last answer.
    """
    before, between = shown.before, shown.between
    verbatim = shown.tagged and between == CLOSE + GAP and before.endswith(OPEN)
    if verbatim:
        before, between = before.removesuffix(OPEN), None
    hidden = shown.has_thought and between is None and not verbatim
    # What is not a server's prompt: data.template_check shows both.
    written = AnswerStart(before, "", between is not None, between or "", verbatim=verbatim)
    if before.startswith(tail) and not hidden:
        opened = before[len(tail) :]
        doubled = last and verbatim and CLOSE in opened  # the template's thought, then the answer's
        return None if doubled else written._replace(prompt=tail, opened=opened)
    closes = tail.startswith(before) and bool(_CLOSED.search(tail[len(before) :]))
    closes = closes and not shown.has_thought
    opens, rest = _OPENED.search(tail), None
    if opens and before.startswith(tail[: opens.start()]):
        rest = _EMPTY.fullmatch(before[opens.start() :])
    if not last and (hidden or closes or (rest and not shown.has_thought)):
        return AnswerStart(before, trained=False)
    if closes:
        return AnswerStart(tail)
    if opens and rest:  # the answer's own thought, or an empty one
        line_break = "\n" if "\n" in opens[1] else ""
        close = f"{line_break}{CLOSE}{line_break * 2 if rest[1] is None else rest[1]}"
        own = AnswerStart(tail, thought=True, close=between or close)
        return own if shown.has_thought else AnswerStart(tail, opened=close)
    return None if hidden else written
