"""Whether examples decode to their text: a tokenizer may lack characters, or be a broken one."""

from typing import TYPE_CHECKING

import numpy as np

from intel_ft.templates.examples import Examples
from intel_ft.templates.formats import Conversation
from intel_ft.templates.thoughts import split_thought

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_CHECKED = 1000  # examples, evenly over the source
_SHOWN = 30  # characters of each text


def decode_notes(
    tokenizer: "PreTrainedTokenizerFast", conversations: list[Conversation], examples: Examples
) -> list[str]:
    """One line if words of the examples are missing in what their token ids decode to.

    White space counts only as present or not: templates strip it. What the tokenizer's own
    normalizer does to a text is not a loss.
    """
    backend = tokenizer.backend_tokenizer
    indices = np.unique(np.linspace(0, len(examples) - 1, _CHECKED).astype(int))
    decoded = backend.decode_batch(
        [examples[index][0].tolist() for index in indices], skip_special_tokens=False
    )
    lost = [
        (text, found)
        for index, found in zip(indices, decoded, strict=True)
        if (text := _first_lost(backend, conversations[index], found))
    ]
    if not lost:
        return []
    text, found = lost[0]
    place = found.find(text[:4]) if text[:4] in found else 0
    return [
        f"{len(lost):,} of {len(indices):,} examples do not decode to their text, because the"
        f" tokenizer lacks characters of it: {text[:_SHOWN]!r} is missing in"
        f" {found[place : place + 2 * _SHOWN]!r}"
    ]


def _first_lost(backend: "Tokenizer", conversation: Conversation, found: str) -> str | None:
    if conversation.text is not None:
        texts, found = [conversation.text], "".join(found.split())
        return None if "".join(texts[0].split()) in found else texts[0]
    found = " ".join(found.split())
    for message in conversation.messages:
        thought = split_thought(message.content) if message.role == "assistant" else None
        for text in (message.content if thought is None else thought[1], message.context):
            if " ".join(text.split()) in found:
                continue
            if backend.normalizer is None:
                return text
            normal = backend.normalizer.normalize_str(text).replace("▁", " ")
            if " ".join(normal.split()) not in found:
                return text
    return None
