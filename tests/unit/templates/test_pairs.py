"""Every format in every template, from a file to token ids: exact mask and text.

No word of a user becomes a control token.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_tokenizers import KINDS, TEMPLATES, tokenizer
from support.hostile_texts import HOSTILE, texts

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.templates.formats import Conversation
from intel_ft.templates.prompt import prompt_tokens
from intel_ft.templates.spans import special_tokens_of
from intel_ft.templates.template import renderer

SINGLE = {
    "alpaca": ("instruction", "input", "output"),
    "dolly": ("instruction", "context", "response"),
    "prompt_completion": ("prompt", None, "completion"),
    "question_answer": ("question", None, "answer"),
}
PAIRS = [(name, template) for name in [*SINGLE, "messages"] for template in TEMPLATES]


@st.composite
def rows(draw, data_format):
    if data_format == "messages":
        turns = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
        for _ in range(draw(st.integers(1, 2))):
            turns.append({"role": "user", "content": draw(texts)})
            turns.append({"role": "assistant", "content": draw(texts)})
        return {"messages": turns}
    user, context, answer = SINGLE[data_format]
    row = {user: draw(texts), answer: draw(texts)}
    if context:
        row[context] = draw(st.one_of(st.just(""), texts))
    return row


def prepared(path, written, kind, data_format, template):
    path.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    data = DataConfig(
        train=str(path), format=data_format, template=template, max_length=10**8, on_long="error"
    )
    return prepare(data, str(path), tokenizer(kind))


def supervised_pieces(ids, supervised):
    edges = np.flatnonzero(np.diff(np.concatenate(([0], supervised.astype(int), [0]))))
    return [(start, ids[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def as_kept(text, kind):
    """Text as far as this kind of tokenizer keeps it: SentencePiece adds and drops spaces."""
    return text.replace(" ", "") if kind.startswith(("llama", "unigram")) else text


LLAMA2 = ("llama, prepend", "unigram")
STRIPPED = (*LLAMA2, "llama, first", "byte, prefix space")


def check(example, conversation, kind, template):
    ids, supervised = example
    tok = tokenizer(kind)
    special = special_tokens_of(tok)
    spans = renderer(template, tok, special, None)(conversation)
    # The mask: answers and their ends, nothing else.
    answers = [one.content for one in conversation.messages if one.role == "assistant"]
    ends = {tok.eos_token, "<|im_end|>", "<|im_end|></s>", "<|eot|>", "<|eot|></s>"}
    if template == "tokenizer":
        if kind in STRIPPED:
            answers = [answer.strip() for answer in answers]
        if kind in LLAMA2:  # its template has a space in front of the end
            ends = {" </s>"}
        if kind == "byte, no bos, pad is eos":  # its template has no end; EOS is the last one's
            ends |= {""}
    found = supervised_pieces(ids, supervised)
    assert len(found) == len(answers)
    for (start, piece), answer in zip(found, answers, strict=True):
        before, end = ids[:start], start + len(piece)
        decoded = tok.decode(piece)
        if not decoded.startswith(answer):  # alone, SentencePiece drops an answer's first space
            decoded = tok.decode(ids[:end])[len(tok.decode(before)) :]
        if not answer and decoded.startswith("  "):  # the template's spaces on both sides
            decoded = decoded[1:]
        assert decoded.startswith(answer)
        assert decoded.removeprefix(answer) in ends
    # The text: what the template writes, users' words in it.
    whole = tok.decode(ids)
    assert as_kept(whole, kind) == as_kept("".join(span.text for span in spans), kind)
    # Control tokens: those of the template, in its order.
    controls = {key for key, one in tok.added_tokens_decoder.items() if one.special}
    controls -= {tok.unk_token_id}
    written = [
        token
        for span in spans
        if span.kind in ("start", "end", "template", "written")
        for token in tok.encode(span.text, add_special_tokens=False)
        if token in controls
    ]
    assert [token for token in ids.tolist() if token in controls] == written
    # What generation starts from is what training had in front of each answer.
    turns = [i for i, one in enumerate(conversation.messages) if one.role == "assistant"]
    for (start, _), turn in zip(found, turns, strict=True):
        assert prompt_tokens(tok, template, conversation.messages[:turn]) == ids[:start].tolist()


@pytest.mark.parametrize(("data_format", "template"), PAIRS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_mask_and_text_come_back(data_format, template, data, tmp_path_factory) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    found = data.draw(st.lists(rows(data_format), min_size=1, max_size=3))
    refused = template == "tokenizer" and kind == "byte, no bos, pad is eos"
    if refused and data_format == "messages":  # that chat template has no system role
        found = [
            {"messages": [t for t in row["messages"] if t["role"] != "system"]} for row in found
        ]
    path = tmp_path_factory.mktemp("pairs") / "rows.jsonl"
    result = prepared(path, found, kind, data_format, template)
    assert len(result.examples) == len(found)
    for index, conversation in enumerate(result.conversations):
        check(result.examples[index], conversation, kind, template)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(words=st.lists(texts, min_size=1, max_size=3))
def test_ready_made_text_comes_back(kind, words, tmp_path_factory) -> None:
    """Its control tokens are meant; all of it is supervised but the first token."""
    path = tmp_path_factory.mktemp("ready") / "rows.jsonl"
    result = prepared(path, [{"text": f"x{one}x"} for one in words], kind, "text", "auto")
    tok = tokenizer(kind)
    for index, word in enumerate(words):
        ids, supervised = result.examples[index]
        start = "<s>" if ids[0] == tok.bos_token_id and tok.bos_token else ""
        assert as_kept(tok.decode(ids), kind) == as_kept(f"{start}x{word}x{tok.eos_token}", kind)
        assert supervised[1:].all() and not supervised[0]


@pytest.mark.parametrize(
    ("kind", "template"), [("llama, prepend", "llama2"), ("unigram", "alpaca")]
)
def test_a_line_of_a_megabyte(kind, template, tmp_path) -> None:
    """From the file on, between short ones, control tokens all over it."""
    words = f"{'How are you? ' * 400}{''.join(HOSTILE)}"
    found = [
        {"instruction": "x", "input": "", "output": "y"},
        {"instruction": "x", "input": words * 200, "output": f"x{words}y"},
        {"instruction": "x", "input": "", "output": "y"},
    ]
    assert len(found[1]["input"]) > 1_000_000
    result = prepared(tmp_path / "rows.jsonl", found, kind, "alpaca", template)
    for index, conversation in enumerate(result.conversations):
        check(result.examples[index], conversation, kind, template)


def test_right_to_left_marks_and_control_characters_stay_where_they_are(tmp_path) -> None:
    """As text: neither reordered, nor dropped, nor read as the end of a line."""
    word = "a\u202eb\u2066c\u2069\u200f\x1b[2J\x07\u2028d\u2029e\x85f\x0bg"
    result = prepared(
        tmp_path / "rows.jsonl", [{"prompt": word, "completion": word}], "byte",
        "prompt_completion", "chatml",
    )  # fmt: skip
    assert result.conversations == [Conversation(result.conversations[0].messages)]
    assert [one.content for one in result.conversations[0].messages] == [word, word]
    ids, _ = result.examples[0]
    assert tokenizer("byte").decode(ids).count(word) == 2
