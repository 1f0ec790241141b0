"""Where an answer begins: behind the prompt that a server sends, with what the model writes first.

A server's prompt may open a thought (DeepSeek-R1), the template may write an empty one where an
answer has none (Qwen3), and most templates drop the thoughts of earlier turns. Used by
templates.chat_template.
"""

import re
from collections.abc import Iterable
from itertools import takewhile
from typing import NamedTuple

from intel_ft.templates.chat_messages import SLOTS
from intel_ft.templates.chat_render import REMEDY, TemplateProblem
from intel_ft.templates.thoughts import CLOSE

_OPENED = re.compile(r"<think>(\s*)\Z")
_CLOSED = re.compile(r"(?:</think>|<channel\|>)\s*\Z")  # a prompt with an empty thought (Gemma 4)
_WITH_EMPTY = re.compile(r"(?:<think>\s*</think>|<\|channel>[^<]*<channel\|>)\s*\Z")
_EMPTY = re.compile(r"\s*(?:<think>\s*)?(?:</think>(\s*))?")


class Start(NamedTuple):
    """A server's prompt for an answer, and what the model writes, both with slots for the words.

    opened: what of it the model writes in front of its words.
    """

    prompt: str
    body: str
    opened: str = ""


def answer_start(whole: str, prompt: str | None, message: int, has_thought: bool) -> Start | None:
    """How the answer of a conversation that ends with it starts.

    whole: what the template writes of the conversation; prompt: what it writes of all before the
    answer with `add_generation_prompt`, None if it cannot; message: the answer's index. Returns
    None if the template leaves out the answer's thought, and no prompt asks for it.
    """
    own = next((slot for slot in SLOTS.finditer(whole) if int(slot[3]) == message), None)
    hidden = has_thought and (own is None or own[4] == "c")
    if prompt is None:
        if own is None:
            raise TemplateProblem(
                f"the tokenizer's chat_template writes no prompt for this answer: {REMEDY}"
            )
        return None if hidden else Start(whole[: own.start()], whole[own.start() :])
    at = own.start() if own else _without_words(whole, prompt)
    before, tail = whole[_after_last_slot(whole[:at]) : at], prompt[_after_last_slot(prompt) :]
    rest = whole[at:]
    if before.startswith(tail) and not hidden:
        opened = before[len(tail) :]
        doubled = own is not None and own[4] == "v" and CLOSE in opened
        return None if doubled else Start(prompt, opened + rest, opened)
    if not has_thought and tail.startswith(before) and _CLOSED.search(tail[len(before) :]):
        return Start(prompt, rest)
    opens, empty = _OPENED.search(tail), None
    if opens and before.startswith(tail[: opens.start()]):
        empty = _EMPTY.fullmatch(before[opens.start() :])
    if opens and empty:  # the answer's own thought, or an empty one
        line_break = "\n" if "\n" in opens[1] else ""
        close = f"{line_break}{CLOSE}{line_break * 2 if empty[1] is None else empty[1]}"
        body = _with_thought(rest, close, own, message, has_thought)
        return Start(prompt, body, "" if has_thought else close)
    # What is not a server's prompt: templates.template_check shows both.
    return None if hidden else Start(whole[:at], rest)


def without_next_prompt(
    body: str, asked: str, followed: str, tokens: Iterable[str], *, words_last: bool
) -> str:
    """The answer without the next answer's prompt, which some templates write unasked (ToolACE).

    asked: what the template writes of all before the answer, with that prompt at its end; followed:
    what it writes up to the words of a question behind the answer, empty if not known; words_last:
    the answer has no tokens of its own behind the last slot, as those of a tool call.
    """
    at = _after_last_slot(body)
    tail, before = body[at:], asked[_after_last_slot(asked) :]
    same = tail  # the next prompt begins in it, or right behind it
    if _last_slot(followed) == _last_slot(body):
        same = _shared_start(tail, followed[_after_last_slot(followed) :])
        if same.rstrip() == tail.rstrip():
            return body
    start = len(tail) - len(_shared_start(tail[::-1], before[::-1]))
    if not tail[start:].strip():
        return body
    ends = []  # of the tokens that end the answer or stand in front of the prompt
    for token in re.finditer("|".join(map(re.escape, tokens)) or r"(?!)", tail):
        if token.start() < start < token.end():  # the ends of turns differ, but for a `>`
            start = token.end()
        if token.start() < len(same) < token.end():
            same = same[: token.start()]
        ends.append(token.end())
    if words_last and any(end <= start for end in ends):
        return body[: at + start]
    # Turns end alike: with the first token of what they share, or in front of the prompt.
    inside = (end for end in ends if start < end <= len(same))
    return body[: at + next(inside, len(same) if same != tail else start)]


def _shared_start(one: str, other: str) -> str:
    pairs = zip(one, other, strict=False)
    return one[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]


def _last_slot(text: str) -> tuple[str, str] | None:
    found = [(slot[3], slot[4]) for slot in SLOTS.finditer(text)]
    return found[-1] if found else None


def _with_thought(
    rest: str, close: str, own: "re.Match[str] | None", message: int, has_thought: bool
) -> str:
    """What the model writes behind a prompt that opens a thought."""
    if not has_thought:
        return close + rest
    thought = f'\t\ue000"{message}t\ue001\t'
    if own is None or own[4] == "c":
        return thought + close + rest
    if own[4] == "v":
        words = f'\t\ue000"{message}c\ue001{own[6] or ""}'
        return thought + close + words + rest[own.end() - own.start() :]
    return rest


def _without_words(whole: str, prompt: str) -> int:
    """Where an answer without words begins, as one that calls tools."""
    if whole.startswith(prompt):
        return len(prompt)
    for thought in (_OPENED, _WITH_EMPTY):  # the prompt has one, and the whole has none
        if (found := thought.search(prompt)) and whole.startswith(prompt[: found.start()]):
            return found.start()
    tail, words = prompt[_after_last_slot(prompt) :], _after_last_slot(whole)
    if tail.strip() and tail in whole[words:]:  # before: the prompt of an earlier answer
        return whole.rindex(tail) + len(tail)
    raise TemplateProblem(
        "the tokenizer's chat_template writes an answer without text, such as a tool call, but not"
        f" after the prompt that a server sends: {REMEDY}"
    )


def _after_last_slot(text: str) -> int:
    end = text.rfind("\ue001") + 1
    if not end:
        return 0
    return end + next((len(tab) for tab in ("\t", "\\t") if text.startswith(tab, end)), 0)
