"""Rows that cannot be used, and what a report says was chosen."""

import json
import logging

import pytest
from support.data_tokenizers import tokenizer

from intel_ft.config import build
from intel_ft.data.prepare import prepare
from intel_ft.data.tokenized import of_prepared
from intel_ft.errors import UserError
from intel_ft.training.setup import read_data


def write(file, *outputs):
    rows = ({"prompt": "q", "completion": output} for output in outputs)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(train, **data):
    values = {"train": str(train), "template": "none", **data}
    sections = {"model": {"name_or_path": "m"}, "data": values, "output": {"directory": "o"}}
    return build(sections, "test")


def answers(tokenized):
    examples = (tokenized.examples[index] for index in range(len(tokenized.examples)))
    return [tokenizer("byte").decode(ids[supervised]) for ids, supervised in examples]


def read(train, **data):
    settings = config(train, **data).data
    return prepare(settings, settings.train, tokenizer("byte"))


def test_bad_rows_are_counted_and_the_first_are_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    write(file, *(["", "x", None, "x", "x"] * 20))
    with pytest.raises(UserError) as caught:
        read(file)
    assert str(caught.value) == (
        f"{file}: 40 of 100 rows cannot be used (row 1, row 6, row 11 and 17 more:"
        " completion is empty; row 3, row 8, row 13 and 17 more: completion is missing):"
        " correct or remove them, or set data.on_bad to drop"
    )


def test_bad_rows_are_dropped_and_stand_in_the_record(tmp_path):
    file = tmp_path / "rows.jsonl"
    write(file, "", "x", "yy", " ")
    prepared = read(file, on_bad="drop")
    assert [c.messages[1].content for c in prepared.conversations] == ["x", "yy"]
    facts = of_prepared(prepared).statistics()
    assert (facts["rows"], facts["examples"], facts["bad"]) == (4, 2, 2)
    line = "dropped 2 of 4 rows, which cannot be used: row 1, row 4: completion is empty"
    assert any(text.startswith(line) for text in prepared.report.lines())


def test_long_rows_after_dropped_ones_have_their_own_number(tmp_path):
    file = tmp_path / "rows.jsonl"
    write(file, "", "x", "y" * 50)
    with pytest.raises(UserError, match=r"rows\.jsonl row 3 has "):
        read(file, on_bad="drop", max_length=16)


def test_nothing_but_bad_rows_is_an_error(tmp_path):
    write(tmp_path / "rows.jsonl", "", "")
    with pytest.raises(UserError, match="2 of 2 rows cannot be used"):
        read(tmp_path / "rows.jsonl", on_bad="drop")


def test_bad_rows_of_several_files_are_named_with_their_file(tmp_path):
    write(tmp_path / "a.jsonl", "x", "")
    write(tmp_path / "b.jsonl", "", "x")
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    named = f"({tmp_path / 'a.jsonl'} row 2, {tmp_path / 'b.jsonl'} row 1: completion is empty)"
    assert named in str(caught.value)


def test_what_of_a_folder_is_trained_is_said(tmp_path, caplog):
    for name in ("train", "test", "dev"):
        write(tmp_path / f"{name}.jsonl", name)
    caplog.set_level(logging.INFO)
    training, validation = read_data(config(tmp_path), tokenizer("byte"))
    assert answers(training) == ["train</s>"]
    assert validation is None
    line = "split train (train.jsonl); not used: validation (dev.jsonl), test (test.jsonl)"
    assert line in training.report.lines() and line in training.statistics()["notes"]
    assert f"data.eval={tmp_path} data.eval_split=validation would evaluate" in caplog.text

    same = config(tmp_path, eval=str(tmp_path), eval_split="validation")
    _, validation = read_data(same, tokenizer("byte"))
    assert answers(validation) == ["dev</s>"]
    assert "training data itself" not in caplog.text
    read_data(config(tmp_path, eval=str(tmp_path)), tokenizer("byte"))
    assert "data.eval is the training data itself" in caplog.text
