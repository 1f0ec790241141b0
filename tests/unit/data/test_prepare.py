import json

import numpy as np
import pytest
from support.data_tokenizers import tokenizer

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.data.validation_split import split_fraction
from intel_ft.errors import UserError


@pytest.fixture
def run(tmp_path):
    def prepare_rows(rows, max_length=None, kind="byte", **config):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = DataConfig(train=str(file), **{"template": "none", **config})
        return prepare(data, str(file), tokenizer(kind), max_length=max_length)

    return prepare_rows


def row(prompt, completion):
    return {"prompt": prompt, "completion": completion}


def turns(*contents):
    roles = ("user", "assistant") * len(contents)
    return {
        "messages": [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=False)
        ]
    }


def supervised_text(prepared, index, kind="byte"):
    ids, supervised = prepared.examples[index]
    return tokenizer(kind).decode(ids[supervised])


ROWS = [row("qq", "xyz"), row("q", "zyxzyxzyxzyx"), row("q" * 30, "z"), row("zz", "y")]


def test_report_says_what_was_decided(run):
    prepared = run(ROWS)
    report = prepared.report
    assert (report.rows, report.examples, report.truncated, report.dropped) == (4, 4, 0, 0)
    assert report.tokens == len(prepared.examples.tokens) == prepared.examples.offsets[-1]
    assert report.supervised_tokens == prepared.examples.supervised.sum()
    assert report.longest == prepared.examples.lengths.max()
    text = "\n".join(report.lines())
    for fact in ("4 rows", "prompt_completion: columns prompt", "none: set in", "completion"):
        assert fact in text
    assert prepared.template == "none" and len(prepared.conversations) == 4


def test_too_long_is_an_error_that_names_the_first(run):
    lengths = run(ROWS).examples.lengths
    with pytest.raises(UserError) as caught:
        run(ROWS, max_length=8)
    assert f"rows.jsonl row 2 has {lengths[1]} tokens, more than data.max_length (8)" in str(
        caught.value
    )
    assert "2 of 4 examples" in str(caught.value) and "on_long" in str(caught.value)


def test_too_long_is_dropped_and_counted(run):
    prepared = run(ROWS, max_length=8, on_long="drop")
    assert [c.messages[0].content for c in prepared.conversations] == ["qq", "zz"]
    assert len(prepared.examples) == prepared.report.examples == 2
    assert (prepared.report.dropped, prepared.report.truncated) == (2, 0)
    assert supervised_text(prepared, 1) == "y</s>"
    assert "dropped 2 examples" in "\n".join(prepared.report.lines())


def test_too_long_is_truncated_with_its_eos_or_dropped_without_an_answer(run):
    whole = run(ROWS)
    prepared = run(ROWS, max_length=8, on_long="truncate")
    assert [c.messages[0].content for c in prepared.conversations] == ["qq", "q", "zz"]
    assert (prepared.report.truncated, prepared.report.dropped) == (1, 1)
    ids, supervised = prepared.examples[1]
    before, _ = whole.examples[1]
    assert len(ids) == 8 and ids[-1] == tokenizer("byte").eos_token_id and supervised[-1]
    assert (ids[:-1] == before[:7]).all()
    assert "zyxzyxzyxzyx".startswith(supervised_text(prepared, 1).removesuffix("</s>"))
    for index, old in ((0, 0), (2, 3)):
        for new_array, old_array in zip(prepared.examples[index], whole.examples[old], strict=True):
            assert (new_array == old_array).all()


@pytest.mark.parametrize("template", ["none", "tokenizer"])
def test_every_length_keeps_the_invariants_of_truncation(run, template):
    rows = [turns("qqqq", "xyz", "zzzzzz", "zyxzyx")]
    tok = tokenizer("byte")
    whole = run(rows, template=template).examples
    prompt = int(np.flatnonzero(whole.supervised)[0])
    for length in range(1, len(whole.tokens) + 1):
        if length < prompt + 2:
            with pytest.raises(UserError, match="all 1 examples are longer"):
                run(rows, length, template=template, on_long="truncate")
            continue
        ids, supervised = run(rows, length, template=template, on_long="truncate").examples[0]
        assert len(ids) <= length and ids[-1] == tok.eos_token_id and supervised[-1]
        assert supervised[-2]  # EOS ends an answer, never a question
        assert (ids[:-1] == whole.tokens[: len(ids) - 1]).all()


def test_nothing_left_is_an_error(run):
    with pytest.raises(UserError, match="all 1 examples are longer"):
        run([ROWS[1]], max_length=8, on_long="drop")


def test_loss_on_all_supervises_everything_but_the_first_token(run):
    prepared = run(ROWS, loss_on="all")
    starts = prepared.examples.offsets[:-1]
    assert not prepared.examples.supervised[starts].any()
    assert prepared.report.supervised_tokens == prepared.report.tokens - len(ROWS)


def test_ready_made_text_is_supervised_whole_and_says_so(run):
    prepared = run([{"text": "<s>[INST] q [/INST] a </s>"}, {"text": "b"}], template="auto")
    assert prepared.report.loss_on == "all" and "ready-made" in prepared.report.loss_reason
    assert supervised_text(prepared, 0) == "[INST] q [/INST] a </s>"
    # Without BOS nothing stands in front of the first token to predict it from.
    kind = "byte, no bos, pad is eos"
    assert not run([{"text": "b c"}], kind=kind).examples.supervised[0]


def test_eos_is_supervised_where_it_is_also_the_padding(run):
    kind = "byte, no bos, pad is eos"
    prepared = run(ROWS, kind=kind)
    assert supervised_text(prepared, 0, kind) == "xyz</s>"


def test_more_examples_than_are_encoded_at_a_time(run, monkeypatch):
    rows = [row(f"q{number}", f"a{number}</s>" if number % 3 else "a") for number in range(50)]
    whole = run(rows).examples
    monkeypatch.setattr("intel_ft.templates.encode._CHUNK", 7)
    parts = run(rows).examples
    for name in ("tokens", "supervised", "offsets"):
        left, right = getattr(whole, name), getattr(parts, name)
        assert left.dtype == right.dtype and (left == right).all()
    assert (whole.tokens.dtype, whole.supervised.dtype, whole.offsets.dtype) == (
        np.int32,
        np.bool_,
        np.int64,
    )


def test_hold_out_split_is_a_partition_and_repeatable(run):
    prepared = run([row(f"q{number}", f"a{number}") for number in range(20)])
    train, held_out = split_fraction(prepared, 0.2, seed=3)
    again, _ = split_fraction(prepared, 0.2, seed=3)
    other, _ = split_fraction(prepared, 0.2, seed=4)
    assert len(train.examples) == 16 and len(held_out.examples) == 4
    assert train.conversations == again.conversations != other.conversations
    both = train.conversations + held_out.conversations
    assert sorted(map(str, both)) == sorted(map(str, prepared.conversations))
    for part in (train, held_out):
        assert part.report.examples == len(part.conversations) == len(part.examples)
        assert part.report.tokens == len(part.examples.tokens)
        for index, conversation in enumerate(part.conversations):
            answer = conversation.messages[1].content
            assert supervised_text(part, index) == f"{answer}</s>"
    tiny, one = split_fraction(prepared, 0.001, seed=0)
    assert (len(tiny.examples), len(one.examples)) == (19, 1)
    with pytest.raises(UserError, match="cannot be split"):
        split_fraction(run(ROWS[:1]), 0.5, seed=0)
