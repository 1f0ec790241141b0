import json

import pytest

from intel_ft.config_sections import DataConfig
from intel_ft.conversations.from_rows import read_conversations
from intel_ft.errors import UserError
from intel_ft.sources.rows import load_rows
from intel_ft.templates.formats import Conversation, Message, detect_format

FORMATS = {
    "alpaca": {"instruction": "i", "input": "c", "output": "o"},
    "dolly": {"instruction": "i", "context": "c", "response": "o", "category": "x"},
    "prompt_completion": {"prompt": "i", "completion": "o"},
    "question_answer": {"question": "i", "answer": "o"},
    "messages": {
        "messages": [{"role": "user", "content": "i"}, {"role": "assistant", "content": "o"}]
    },
    "text": {"text": "i o"},
}


@pytest.fixture
def rows(tmp_path):
    def write(*values):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(value) + "\n" for value in values))
        return load_rows(str(file))

    return write


def conversations(table, data_format):
    return read_conversations(table, DataConfig(train="-", format=data_format)).conversations


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_recognised_by_its_columns_and_read(rows, name):
    row = {**FORMATS[name], "module": "m"}
    table = rows(row, row)
    found, reason = detect_format(table.columns, "auto", origin="f", nested=table.nested)
    assert found == name and name in reason and "column" in reason
    assert detect_format(table.columns, name, origin="f") == (name, "set in data.format")
    context = "c" if name in ("alpaca", "dolly") else ""
    expected = Conversation((Message("user", "i", context), Message("assistant", "o")))
    if name == "text":
        expected = Conversation(text="i o")
    assert conversations(table, name) == [expected] * 2


def test_columns_that_fit_no_format_or_several_are_listed():
    with pytest.raises(UserError, match=r"id, score; .* alpaca .* name the columns in"):
        detect_format(["id", "score"], "auto", origin="f")
    with pytest.raises(UserError, match=r"alpaca and text: set data.format"):
        detect_format(["instruction", "output", "text"], "auto", origin="f")
    with pytest.raises(UserError, match=r"columns question and answer, but answer is missing"):
        detect_format(["question", "reply"], "question_answer", origin="f")


def test_nested_rows_are_refused_with_what_to_do(rows):
    table = rows({"instruction": "i", "instances": [{"input": "", "output": "o"}]})
    with pytest.raises(UserError, match=r"column instances is nested: flatten"):
        detect_format(table.columns, "auto", origin="f", nested=table.nested)


def test_input_may_be_missing_or_null(rows):
    table = rows({"instruction": "i", "output": "o"}, {"instruction": "i", "output": "o"})
    assert conversations(table, "alpaca")[1].messages[0].context == ""
    table = rows(
        {"instruction": "i", "input": None, "output": "o"},
        {"instruction": "i", "input": "c", "output": "o"},
    )
    assert [c.messages[0].context for c in conversations(table, "alpaca")] == ["", "c"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "i"}, "output is missing"),
        ({"instruction": "i", "output": None}, "output is missing"),
        ({"instruction": "i", "output": ""}, "output is empty"),
        ({"instruction": " ", "output": "o"}, "instruction is empty"),
        ({"instruction": "i", "output": True}, "output is True, not text: write it as text"),
        ({"instruction": "i", "output": 1.5}, "output is 1.5, not text: write it as text"),
        ({"instruction": "i", "output": ["o"]}, "output is a list, not text"),
        ({"instruction": "i", "input": ["c"], "output": "o"}, "input is a list, not text"),
    ],
)
def test_a_bad_row_is_named(rows, row, words):
    table = rows({"instruction": "i", "input": "c", "output": "o"}, row)
    with pytest.raises(UserError, match=rf"rows\.jsonl row 2: {words}.*: "):
        conversations(table, "alpaca")


def turn(role, content="x"):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        (None, "messages is missing or empty"),
        ([], "messages is missing or empty"),
        ("hello", "messages is not a list"),
        (["hello"], r"messages\[0\] is not a mapping"),
        ([turn("user")], "no turn is the assistant's"),
        ([turn("system")], "no turn is the assistant's"),
        ([turn("user"), turn("tool")], "no turn is the assistant's"),
        ([turn("user"), turn("critic")], r"messages\[1\]\.role is 'critic'.* system"),
        ([{"content": "x"}], r"messages\[0\]\.role is None"),
        ([turn("user"), turn("user")], "no turn is the assistant's"),
        ([turn("user"), turn("assistant", "")], r"messages\[1\]\.content is empty"),
        ([turn("user"), {"role": "assistant"}], r"messages\[1\]\.content is missing"),
        ([turn("user", 3.5), turn("assistant")], r"messages\[0\]\.content is 3.5, not text"),
        ([turn("user", [{"type": "audio"}]), turn("assistant")], "a part of type 'audio'"),
        ([turn("system", 3.5), turn("user")], r"messages\[0\]\.content is 3.5, not text"),
    ],
)
def test_bad_messages_are_named(rows, turns, words):
    good = [turn("system"), turn("user"), turn("assistant"), turn("user"), turn("assistant")]
    table = rows({"messages": good}, {"messages": turns})
    with pytest.raises(UserError, match=rf"rows\.jsonl row 2: .*{words.split('messages')[-1]}"):
        conversations(table, "messages")
