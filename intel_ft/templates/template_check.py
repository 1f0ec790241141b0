"""Compare what is trained with what `apply_chat_template` gives: whole conversation and prompt.

The prompt is what a server sends (`add_generation_prompt`). Not reported is what every template has
here: text behind the last answer is left out, and EOS follows where the template has none.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intel_ft.templates.chat_messages import Signature, signature_of, words_of
from intel_ft.templates.chat_render import DATE
from intel_ft.templates.chat_template import ChatTemplate
from intel_ft.templates.encode import SpanEncoder, decoded
from intel_ft.templates.formats import Conversation
from intel_ft.templates.spans import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHAPES = 8  # sequences of roles that are compared; a template treats further ones alike
_SHOWN = 80  # characters of each text around a difference


def template_notes(
    tokenizer: "PreTrainedTokenizerFast",
    special: SpecialTokens,
    conversations: Iterable[Conversation],
) -> list[str]:
    """What a user should know of the tokenizer's chat_template on these conversations.

    One line for each way in which the trained text is not the template's or the prompt is not a
    server's, with both texts, and one for text that the model learns in front of its answers. One
    conversation of each sequence of roles is compared, up to eight.
    """
    template = ChatTemplate(tokenizer, special)
    encoder = SpanEncoder(tokenizer, special)
    shown: dict[Signature, Conversation] = {}
    for conversation in conversations:
        if len(shown) < _SHAPES:
            shown.setdefault(signature_of(conversation), conversation)
    notes: dict[str, None] = {}
    for conversation in shown.values():
        ids, learnt = encoder.encode([template.spans(conversation)])[0]
        if template.whole_text(conversation) != template.whole_text(conversation, today=True):
            notes[
                f"the chat_template writes today's date: here it is {DATE:%d %b %Y}, on every day,"
                " so that a resumed run has the same tokens"
            ] = None
        thinks = words_of(conversation.messages[-1])[0] is not None
        if not thinks and (opened := template.opened(conversation)):
            notes[
                f"the model learns to write {opened!r} in front of its answer, because the prompt"
                " that a server sends ends before it"
            ] = None
        if problem := difference(template, tokenizer, conversation, ids, learnt):
            notes[problem] = None
    return list(notes)


@dataclass(frozen=True)
class Comparison:
    """How many examples were compared, how many differ, and the first difference, with its row."""

    compared: int
    unlike: int
    first: str


def compare(
    tokenizer: "PreTrainedTokenizerFast",
    special: SpecialTokens,
    conversations: Sequence[Conversation],
    where: Callable[[int], str],
) -> Comparison:
    """Compare all conversations with what `apply_chat_template` gives, before any truncation.

    where: the row of the conversation at an index, for the text.
    """
    template = ChatTemplate(tokenizer, special)
    examples = SpanEncoder(tokenizer, special).encode(map(template.spans, conversations))
    unlike, first = 0, ""
    for index, conversation in enumerate(conversations):
        ids, learnt = examples[index]
        if problem := difference(template, tokenizer, conversation, ids, learnt):
            unlike += 1
            first = first or f"{where(index)}: {problem}"
    return Comparison(len(conversations), unlike, first)


def difference(
    template: ChatTemplate,
    tokenizer: "PreTrainedTokenizerFast",
    conversation: Conversation,
    ids: npt.NDArray[np.int32],
    learnt: npt.NDArray[np.bool_],
) -> str | None:
    """How an example differs from `apply_chat_template`, with both texts; None if it does not.

    Where the texts are equal, so are the examples: a token of the template's text may span the end
    of the prompt, and a model continues a prompt, and does not change its tokens. Where the
    template marks what is generated, its marks count, and not the prompt.
    """
    ours = ids.tolist()
    if conversation.messages[-1].role == "assistant":
        if not template.has_marks(conversation):
            for prompt, asked in _prompts(template, conversation, ours, learnt):
                sent = _ids(tokenizer, asked)
                if prompt != sent and decoded(tokenizer, prompt) != decoded(tokenizer, sent):
                    found = _first_difference(tokenizer, prompt, sent)
                    return f"the prompt is not what a server sends: {found}"
        if template.adds_eos(conversation):
            ours = ours[:-1]
    text = template.whole_text(conversation)
    whole = _ids(tokenizer, text)
    opened = template.opened(conversation)
    if whole[: len(ours)] == ours or (opened and opened not in text):  # a note of its own
        return None
    if decoded(tokenizer, whole).startswith(decoded(tokenizer, ours)):
        return None
    found = _first_difference(tokenizer, ours, whole)
    return f"the conversation is not what its chat_template gives: {found}"


def _prompts(
    template: ChatTemplate,
    conversation: Conversation,
    ids: list[int],
    learnt: npt.NDArray[np.bool_],
) -> Iterator[tuple[list[int], str]]:
    """The ids in front of each trained answer, and the text that a server sends there."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], learnt.astype(np.int8), [0]))))
    starts = edges[::2].tolist()
    shown = template.learnt(conversation)
    answers = [
        index
        for index, message in enumerate(conversation.messages)
        if message.role == "assistant" and message.in_loss and index in shown
    ]
    if len(starts) != len(answers):  # nothing stands between two of them: the last one counts
        starts, answers = starts[-1:], answers[-1:]
    for start, index in zip(starts, answers, strict=False):
        asked = template.prompt_text(conversation, index) if index and start else None
        if asked is not None:
            yield ids[:start], asked


def _first_difference(
    tokenizer: "PreTrainedTokenizerFast", ours: list[int], theirs: list[int]
) -> str:
    """Both texts from a little in front of the first token that differs."""
    pairs = zip(ours, theirs, strict=False)
    common = next(
        (i for i, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs))
    )
    start = max(common - 3, 0)
    here, there = (decoded(tokenizer, part[start:]) for part in (ours, theirs))
    if here == there:
        here, there = (tokenizer.convert_ids_to_tokens(part[start:]) for part in (ours, theirs))
        here, there = " ".join(here), " ".join(there)
    here, there = here[:_SHOWN], there[:_SHOWN]
    return f"{here!r} here, {there!r} there"


def _ids(tokenizer: "PreTrainedTokenizerFast", text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
