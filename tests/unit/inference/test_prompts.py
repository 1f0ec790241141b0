"""Files of prompts that cannot be read."""

import json

import pytest

from intel_ft.errors import UserError
from intel_ft.inference.prompts import read_prompts
from intel_ft.templates.formats import Message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "caf\xe9".encode("latin1"), "line 1 (byte 3 of the file) is not UTF-8: convert"),
        ("a.txt", "one\ntwo".encode("utf-16"), "is UTF-16: convert"),
        ("a.txt", "one\ntwo".encode("utf-16-le"), "is UTF-16LE: convert"),
        ("a.jsonl", b"<!DOCTYPE html>", "is an HTML page"),
        ("a.csv", b"prompt\nx\n", "must be in a .txt or .jsonl file"),
        ("a.txt", b"\n \n", "contains no prompt"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_prompts(tmp_path / name)
    assert words in str(caught.value)
    with pytest.raises(UserError, match="no such file of prompts"):
        read_prompts(tmp_path / "absent.txt")


def test_text_with_a_mark_of_utf_8_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    assert [messages[0].content for messages in read_prompts(tmp_path / "a.txt")] == ["one", "two"]


ROW = {"system": "S", "history": [["a", "b"]], "context": "c"}
EARLIER = (Message("system", "S"), Message("user", "a"), Message("assistant", "b"))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "i", **ROW, "output": "o"}, (*EARLIER, Message("user", "i", "c"))),
        ({"question": "i", **ROW}, (*EARLIER, Message("user", "i", "c"))),
        ({"question": "i", "input": "c"}, (Message("user", "i", "c"),)),
        ({"prompt": "i", **ROW}, (*EARLIER, Message("user", "i"))),
        (
            {"messages": [{"role": "user", "content": "i"}], "system": "S"},
            (Message("system", "S"), Message("user", "i")),
        ),
    ],
)
def test_a_row_of_the_training_data_is_the_prompt_that_was_trained_on(tmp_path, row, messages):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert read_prompts(tmp_path / "a.jsonl") == [messages]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "i", "images": ["a.jpg"]}, "line 1: images: only text"),
        ({"prompt": "i", "tools": [{"name": "f"}]}, "line 1: tools: "),
        ({"question": "i", "input": "c", "context": "d"}, "line 1: input and context both"),
        ({"question": "i", "context": ["c"]}, "line 1: context is a list, not text"),
        ({"instruction": "i", "history": "a"}, "line 1: history is not a list of pairs"),
        ({"prompt": "\ud800"}, "line 1: the user's text contains an unpaired surrogate"),
        ({"prompt": " "}, "line 1: prompt must be text"),
    ],
)
def test_a_row_that_would_be_another_prompt_is_refused(tmp_path, row, words):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError) as caught:
        read_prompts(tmp_path / "a.jsonl")
    assert words in str(caught.value)


def test_a_row_to_train_on_is_asked_without_its_answer(tmp_path):
    turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    expected = tuple(Message(role, text) for role, text in turns[:-1])
    assert read_prompts(tmp_path / "a.jsonl") == [expected]
