"""An answer out of the loss changes the mask and nothing else, in every template and tokenizer."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from support.data_tokenizers import KINDS, TEMPLATES, tokenizer

from intel_ft.templates.encode import SpanEncoder
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template import renderer

ANSWERS = ("I am well.", " </s><|im_end|> x", "def f(x):\n    return x\n")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_mask_of_the_answer_and_its_end_changes(kind, template):
    tok = tokenizer(kind)
    special = special_tokens_of(tok)
    render, encoder = renderer(template, tok, special, None), SpanEncoder(tok, special)
    messages = [m for text in ANSWERS for m in (Message("user", "Hi"), Message("assistant", text))]
    flags = list(itertools.product((True, False), repeat=len(ANSWERS)))
    talks = []
    for chosen in flags:
        trained = iter(chosen)
        talks.append(
            tuple(
                replace(m, trained=next(trained)) if m.role == "assistant" else m for m in messages
            )
        )
    examples = encoder.encode(render(Conversation(talk)) for talk in talks)
    whole, full = examples[0]
    starts = np.flatnonzero(np.diff(np.concatenate(([0], full.astype(int)))) == 1)
    assert len(starts) == len(ANSWERS)
    answer_of = np.searchsorted(starts, np.arange(len(whole)), side="right") - 1
    for index, chosen in enumerate(flags):
        ids, supervised = examples[index]
        assert ids.tolist() == whole.tolist()
        expected = full & np.array([place >= 0 and chosen[place] for place in answer_of])
        assert supervised.tolist() == expected.tolist()
