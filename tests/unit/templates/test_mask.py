"""The mask is exact, and no word becomes a control token: every template, tokenizer and length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_tokenizers import KINDS, TEMPLATES, tokenizer
from support.hostile_texts import texts

from intel_ft.templates.encode import SpanEncoder
from intel_ft.templates.formats import Conversation, Message
from intel_ft.templates.prompt import prompt_tokens
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template import renderer


@st.composite
def conversations(draw):
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        context = draw(st.one_of(st.just(""), texts))
        messages += [Message("user", draw(texts), context), Message("assistant", draw(texts))]
    return Conversation(tuple(messages))


def write(kind, template, conversation, system_prompt=None):
    tok = tokenizer(kind)
    special = special_tokens_of(tok)
    spans = renderer(template, tok, special, system_prompt)(conversation)
    examples = SpanEncoder(tok, special).encode([spans])
    ids, supervised = examples[0]
    return tok, spans, ids, supervised


def supervised_texts(tok, ids, supervised):
    """Each supervised stretch, decoded alone, and what it adds to the text in front of it."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], supervised.astype(int), [0]))))
    return [
        (tok.decode(ids[start:end]), tok.decode(ids[:end])[len(tok.decode(ids[:start])) :])
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]


STRIPPED = ("llama, prepend", "unigram", "llama, first", "byte, prefix space")


def ends_of(kind, template, turns):
    """What must follow each completion."""
    eos = tokenizer(kind).eos_token
    if template == "tokenizer" and kind == "byte":
        return ["<|im_end|>"] * (turns - 1) + ["<|im_end|></s>"]
    if template == "tokenizer" and kind in ("byte, prefix space", "llama, first"):
        return ["<|eot|>"] * (turns - 1) + ["<|eot|></s>"]
    if template == "tokenizer" and kind in ("llama, prepend", "unigram"):
        return [" </s>"] * turns  # the template's own space
    if template == "tokenizer" and kind == "byte, no bos, pad is eos":
        return [""] * (turns - 1) + [eos]  # the template has no end
    return [eos] * turns


def without_system_if_refused(kind, template, conversation):
    if template == "tokenizer" and kind == "byte, no bos, pad is eos":
        turns = [message for message in conversation.messages if message.role != "system"]
        return Conversation(tuple(turns))
    return conversation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(conversation=conversations())
def test_supervised_tokens_are_completion_and_end(template, kind, conversation):
    conversation = without_system_if_refused(kind, template, conversation)
    tok, spans, ids, supervised = write(kind, template, conversation)
    answers = [m.content for m in conversation.messages if m.role == "assistant"]
    if template == "tokenizer" and kind in STRIPPED:
        answers = [answer.strip() for answer in answers]
    found = supervised_texts(tok, ids, supervised)
    ends = ends_of(kind, template, len(answers))
    for answer, end, decoded in zip(answers, ends, found, strict=True):
        assert answer + end in decoded  # the space of `[/INST] answer` is the template's
    assert ids[-1] == tok.eos_token_id and supervised[-1]
    # Control tokens are those that the template writes, whatever the words spell.
    added = tok.added_tokens_decoder
    special = {key for key, token in added.items() if token.special} - {tok.unk_token_id}
    written = [
        token
        for span in spans
        if span.kind in ("start", "end", "template", "written")
        for token in tok.encode(span.text, add_special_tokens=False)
        if token in special
    ]
    assert [token for token in ids if token in special] == written
    # A user's words do not even become added tokens that are declared ordinary.
    ordinary = {tok.convert_tokens_to_ids(text) for text in ("<|tool|>", "<think>")}
    assert not (ordinary - {tok.unk_token_id}) & set(ids[~supervised].tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=12, deadline=None)
@given(conversation=conversations(), system_prompt=st.sampled_from([None, "Be kind."]))
def test_the_prompt_is_what_training_had_before_the_completion(
    template, kind, conversation, system_prompt
):
    conversation = without_system_if_refused(kind, template, conversation)
    if template == "tokenizer" and kind == "byte, no bos, pad is eos":
        system_prompt = None
    tok, _, ids, supervised = write(kind, template, conversation, system_prompt)
    starts = np.flatnonzero(np.diff(np.concatenate(([0], supervised.astype(int)))) == 1)
    answers = [i for i, m in enumerate(conversation.messages) if m.role == "assistant"]
    for start, answer in zip(starts, answers, strict=True):
        messages = conversation.messages[:answer]
        assert prompt_tokens(tok, template, messages, system_prompt) == ids[:start].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_bos_stands_first_and_once(template, kind):
    tok = tokenizer(kind)
    turn = (Message("user", "hi"), Message("assistant", "hello"))
    _, _, ids, _ = write(kind, template, Conversation(turn))
    adds = kind in ("byte", "llama, prepend", "llama, first", "unigram")
    writes = template == "llama2"
    if template == "tokenizer":  # a server sends what the template writes, and no other BOS
        adds, writes = False, not kind.startswith("byte") or kind == "byte, prefix space"
    expected = int(tok.bos_token is not None and (adds or writes))
    assert ids.tolist().count(tok.bos_token_id) == expected
    assert (ids[0] == tok.bos_token_id) == bool(expected)


def test_llama2_gives_the_ids_of_its_authors():
    """llama/generation.py: bos + encode("[INST] q [/INST]"), then encode("a") and EOS."""
    for kind in ("llama, prepend", "llama, first"):
        tok = tokenizer(kind)
        turn = (Message("user", "How are you"), Message("assistant", "I am"))
        for template in ("llama2", "tokenizer") if kind == "llama, prepend" else ("llama2",):
            _, _, ids, _ = write(kind, template, Conversation(turn * 2))

            def plain(text, tok=tok):
                return tok.encode(text, add_special_tokens=False)

            # The tokenizer's template has a space in front of the end, as the authors' code has.
            answer = plain("I am ") if template == "tokenizer" else plain("I am")
            once = [1, *plain("[INST] How are you [/INST]"), *answer, 2]
            assert ids.tolist() == once * 2


def test_a_megabyte_of_text_with_control_tokens():
    words = "no spaces </s>" * 70_000
    conversation = Conversation((Message("user", words), Message("assistant", words)))
    tok, _, ids, supervised = write("byte", "chatml", conversation)
    assert tok.decode(ids[supervised]) == words + "</s>"
    assert ids.tolist().count(tok.eos_token_id) == 1


def test_completion_keeps_tokens_that_the_tokenizer_calls_ordinary():
    turn = (Message("user", "<think>"), Message("assistant", "<think>x<|tool|></s>"))
    tok, _, ids, supervised = write("byte", "none", Conversation(turn))
    think, tool = tok.convert_tokens_to_ids(["<think>", "<|tool|>"])
    assert (ids == think).tolist() == [False] * (len(ids) - supervised.sum()) + [True] + [False] * (
        supervised.sum() - 1
    )
    assert tool not in ids and ids.tolist().count(tok.eos_token_id) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["a b", "<s>a b", " <s>a b</s>\n", "a b</s>"])
def test_ready_made_text_has_bos_and_eos_once(kind, text):
    tok, _, ids, supervised = write(kind, "none", Conversation(text=text))
    own_bos = tok.bos_token is not None and "<s>" in text
    eos_is_other = tok.eos_token != "</s>"
    if not eos_is_other:
        assert ids.tolist().count(tok.eos_token_id) == 1
    if own_bos:
        assert ids.tolist().count(tok.bos_token_id) == 1 and ids[0] == tok.bos_token_id
    assert ids[-1] == tok.eos_token_id and supervised[-1]
    assert supervised[int(ids[0] == tok.bos_token_id) :].all()


def test_ready_made_text_parses_control_tokens_inside():
    _, _, ids, _ = write("byte", "none", Conversation(text="<s>q </s><s> a"))
    assert [token for token in ids if token in (1, 2)] == [1, 2, 1, 2]
