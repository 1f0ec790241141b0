"""The conversations that a template can write, and those of which it needs several examples."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from intel_ft.config_sections import DataConfig
from intel_ft.conversations.from_rows import ReadData
from intel_ft.conversations.unsupported import thinking_tag
from intel_ft.errors import UserError
from intel_ft.plurals import count_of
from intel_ft.sources.bad_rows import BadRows, NothingUsable
from intel_ft.sources.rows import Rows
from intel_ft.templates.chat_render import TemplateProblem
from intel_ft.templates.chat_template import ChatTemplate
from intel_ft.templates.formats import Conversation
from intel_ft.templates.template import Template, require_built_in, with_system_prompt
from intel_ft.templates.thoughts import split_thought


@dataclass(frozen=True)
class Fitted:
    """What is written: conversations, one for each example, and the index of each one's row.

    places: the index of each one's conversation among those that were read; bad: rows that cannot
    be used; separated: conversations that became several examples; context_only: answers that the
    template takes out of the loss.
    """

    conversations: list[Conversation]
    rows: list[int]
    places: list[int]
    bad: BadRows
    separated: int = 0
    context_only: int = 0


def fit(read: ReadData, data: DataConfig, template: Template, chat: ChatTemplate | None) -> Fitted:
    """The conversations as the template can write them. chat: the tokenizer's, if it is that one.

    Raises UserError if it cannot write some, unless data.on_bad is drop.
    """
    written: list[tuple[int, int, Conversation]] = []
    problems = dict(read.bad.problems)
    separated = context_only = 0
    parts_of = _parts_of(data, chat) if chat else partial(_as_it_is, template)
    for place, (row, conversation) in enumerate(zip(read.rows, read.conversations, strict=True)):
        try:
            parts, lost = parts_of(conversation)
        except TemplateProblem as problem:
            problems[row] = str(problem)
            continue
        written += [(place, row, part) for part in parts]
        separated += len(parts) > 1
        context_only += lost
    bad = replace(read.bad, problems=dict(sorted(problems.items())))
    if len(bad) > len(read.bad) and data.on_bad == "error":
        raise bad.error()
    # Of a pair of answers, one alone is of no use.
    used = [one for one in written if one[1] not in bad.problems]
    if not used:
        raise NothingUsable(str(bad.error()), bad, 0)
    places, rows, conversations = map(list, zip(*used, strict=True))
    return Fitted(conversations, rows, places, bad, separated, context_only)


def _as_it_is(template: Template, conversation: Conversation) -> tuple[list[Conversation], int]:
    if conversation.messages:
        require_built_in(template, conversation)
    return [conversation], 0


def _parts_of(
    data: DataConfig, template: ChatTemplate
) -> Callable[[Conversation], tuple[list[Conversation], int]]:
    """A function from a conversation to its examples, and the answers out of the loss."""

    def parts_of(conversation: Conversation) -> tuple[list[Conversation], int]:
        whole = with_system_prompt(conversation, data.system_prompt)
        learnt = template.learnt(whole)
        if data.loss_on == "all" or all(
            index in learnt or not one.in_loss for index, one in enumerate(whole.messages)
        ):
            return [conversation], 0
        separate = template.separate(whole)
        parts = list(separate if data.earlier_answers == "separate" else islice(separate, 1))
        lost = _in_loss(whole) - sum(map(_in_loss, parts))
        if whole is not conversation:
            parts = list(_without_first(parts))
        return parts[::-1], lost

    return parts_of


def _in_loss(conversation: Conversation) -> int:
    return sum(message.in_loss for message in conversation.messages)


def _without_first(parts: list[Conversation]) -> Iterator[Conversation]:
    """The parts without data.system_prompt, which is written in front of them again."""
    return (replace(part, messages=part.messages[1:]) for part in parts)


def refuse_thoughts(rows: Rows, read: ReadData, chat_template: str) -> None:
    """Raise UserError for tags of reasoning that the chat_template would not take for a thought.

    A thought is one block `<think>...</think>` in front of an answer (data.thoughts).
    """
    if not re.search("think|reasoning", chat_template, re.IGNORECASE):
        return
    found = [
        (row, tag)
        for row, conversation in zip(read.rows, read.conversations, strict=True)
        for message in conversation.messages
        if message.role == "assistant" and split_thought(message.content) is None
        if (tag := thinking_tag(message.content))
    ]
    if found:
        row, tag = found[0]
        raise UserError(
            f"{rows.where(row)}: an answer contains {tag}, but not as one <think>...</think> block"
            f" at its start ({count_of(len(found), 'such answer')}), and the tokenizer's"
            " chat_template writes reasoning itself: correct the blocks, or set data.template to"
            " chatml, which uses answers unchanged"
        )
