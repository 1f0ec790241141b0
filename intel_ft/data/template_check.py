"""Compare what is trained with what `apply_chat_template` gives: whole conversation and prompt.

The prompt is what a server sends (`add_generation_prompt`). Differences that every template has
here (answers as they are, no white space in front of their end, EOS last) are not reported.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from intel_ft.data.chat_template import DATE, ChatTemplate, Signature, signature_of
from intel_ft.data.encode import SpanEncoder
from intel_ft.data.formats import Message
from intel_ft.data.spans import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHAPES = 8  # sequences of roles that are compared; a template treats further ones alike
_SHOWN = 80  # characters of each text around a difference


def template_notes(
    tokenizer: "PreTrainedTokenizerFast",
    special: SpecialTokens,
    conversations: Iterable[tuple[Message, ...]],
) -> list[str]:
    """What a user should know of the tokenizer's chat_template on these conversations.

    One line for each way in which the trained text is not the template's or the prompt is not a
    server's, with both texts; one for text that the model learns in front of its answers; one for
    answers that are context only.
    """
    template = ChatTemplate(tokenizer, special)
    encoder = SpanEncoder(tokenizer, special)
    groups: dict[Signature, list[tuple[Message, ...]]] = {}
    for messages in conversations:
        groups.setdefault(signature_of(messages), []).append(messages)
    shown = [group[0] for group in groups.values()][:_SHAPES]
    notes = dict.fromkeys(
        note for messages in shown for note in _differences(template, encoder, tokenizer, messages)
    )
    context_only = sum(
        template.context_only(messages)
        for signature, group in groups.items()
        if len(signature) > 2  # one question: its answer is learnt
        for messages in group
    )
    if context_only:
        notes[
            f"{context_only:,} answers are context only: where the conversation goes on, the"
            " chat_template drops the thought in front of them, so a server's prompt is another one"
        ] = None
    return list(notes)


def _differences(
    template: ChatTemplate,
    encoder: SpanEncoder,
    tokenizer: "PreTrainedTokenizerFast",
    messages: tuple[Message, ...],
) -> Iterable[str]:
    # Templates strip what users write; that is no difference of structure.
    messages = tuple(Message(m.role, m.full_content.strip(), trained=m.trained) for m in messages)
    spans = template.spans(messages)
    ids, learnt = encoder.encode([spans])[0]
    ids, turns = ids.tolist(), template.as_dicts(messages)
    unlearnt = np.flatnonzero(~learnt)
    prompt = ids[: int(unlearnt[-1]) + 1 if len(unlearnt) else 0]
    sent = tokenizer.encode(template.text(turns[:-1], prompt=True), add_special_tokens=False)
    whole = tokenizer.encode(template.text(turns), add_special_tokens=False)
    if template.text(turns) != template.text(turns, today=True):
        yield (
            f"the chat_template writes today's date: here it is {DATE:%d %b %Y}, on every day, so"
            " that a resumed run has the same tokens"
        )
    ends = len(ids) - next(i for i, span in enumerate(reversed(spans)) if span.kind != "end")
    if difference := _first_difference(tokenizer, prompt, sent):
        yield f"the prompt is not what a server sends: {difference}"
    if opened := template.opened(messages):
        yield (
            f"the model learns to write {opened!r} in front of its answer, because the prompt that"
            " a server sends ends before it"
        )
    elif not difference and not tokenizer.decode(whole).startswith(tokenizer.decode(ids[:ends])):
        difference = _first_difference(tokenizer, ids[:ends], whole)
        yield f"the conversation is not what its chat_template gives: {difference}"


def _first_difference(
    tokenizer: "PreTrainedTokenizerFast", ours: list[int], theirs: list[int]
) -> str | None:
    """Both texts from a little in front of the first token that differs; None without one."""
    if ours == theirs:
        return None
    pairs = zip(ours, theirs, strict=False)
    common = next(
        (i for i, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs))
    )
    start = max(common - 3, 0)
    here, there = (tokenizer.decode(part[start:]) for part in (ours, theirs))
    if here == there:
        here, there = (tokenizer.convert_ids_to_tokens(part[start:]) for part in (ours, theirs))
        here, there = " ".join(here), " ".join(there)
    here, there = here[:_SHOWN], there[:_SHOWN]
    return f"{here!r} here, {there!r} there"
