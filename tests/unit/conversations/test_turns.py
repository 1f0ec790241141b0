"""Turns as OpenAI, ShareGPT, LLaMA-Factory and ms-swift write them: roles, tools, thoughts."""

import json

import pytest
from support.data_tokenizers import tokenizer

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.errors import UserError
from intel_ft.templates.formats import Message

USER, ANSWER = {"role": "user", "content": "i"}, {"role": "assistant", "content": "o"}
TURNS = [USER, ANSWER]
TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
CALL = {"name": "add", "arguments": {"a": 1, "b": "x"}}
CALLS = json.dumps([{"type": "function", "function": CALL}])
TOOL_TEXT = json.dumps([{"type": "function", "function": TOOL}])


def refusal(read, *rows):
    with pytest.raises(UserError) as caught:
        read(*rows)
    return str(caught.value)


def only(read, *turns, **row):
    return read({"messages": list(turns), **row}).conversations[0]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"function": CALL}]},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {**CALL, "arguments": json.dumps(CALL["arguments"])},
                }
            ],
        },
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": "", "function_call": CALL},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"role": "tool_call", "content": json.dumps([CALL])},
    ],
)
@pytest.mark.parametrize("result", ["tool", "function", "observation", "tool_response", "ipython"])
def test_a_call_and_its_result_in_every_spelling(read, turn, result):
    key = ("from", "value") if "from" in turn else ("role", "content")
    asked, told = ({key[0]: name, key[1]: "i"} for name in ("user", result))
    end = {key[0]: "assistant", key[1]: "o"}
    assert only(read, asked, turn, told, end).messages == (
        Message("user", "i"),
        Message("assistant", "", calls=CALLS),
        Message("tool", "i"),
        Message("assistant", "o"),
    )


@pytest.mark.parametrize("tools", [[TOOL], [{"type": "function", "function": TOOL}], TOOL])
@pytest.mark.parametrize("column", ["tools", "functions"])
@pytest.mark.parametrize("as_text", [True, False])
def test_tools_of_a_column_or_of_a_turn(read, tools, column, as_text):
    value = json.dumps(tools) if as_text else tools
    found = read({"messages": TURNS, column: value})
    assert found.conversations[0].tools == TOOL_TEXT and found.unused == ()
    assert only(read, {"role": "system", "content": "S", column: value}, *TURNS).tools == TOOL_TEXT
    assert read({"instruction": "i", "output": "o", column: value}).conversations[0].tools


def test_nulls_that_a_table_fills_in_are_no_arguments(read):
    """Rows with different arguments: a table gives each row the keys of all."""
    rows = [
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": a}]}]}
        for a in ({"x": 1}, {"y": {"z": "1"}}, {"x": 2, "y": {}})
    ]
    calls = [c.messages[1].calls for c in read(*rows).conversations]
    assert [json.loads(text)[0]["function"]["arguments"] for text in calls] == [
        {"x": 1},
        {"y": {"z": "1"}},
        {"x": 2, "y": {}},
    ]


def test_rows_of_different_kinds_in_one_file(read):
    """Text and parts, objects and text, other tools in each row: nothing is filled in or lost."""
    parts = {"role": "user", "content": [{"type": "text", "text": "p"}]}
    tools = [{"name": "f", "parameters": {"properties": {"x": {"enum": [1, 2]}}}}]
    others = [{"name": "g", "parameters": {"properties": {"y": {"enum": ["q"]}}}}]
    arguments = ({"x": 1}, {"x": "s", "y": [1, "a"]})
    answers = [
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": a}]} for a in arguments
    ]
    results = [{"role": "tool", "content": content} for content in ({"a": 1}, "t")]
    rows = [
        {"messages": TURNS},
        {"messages": [parts, ANSWER]},
        {"messages": [USER, answers[0], results[0], ANSWER], "tools": tools},
        {"messages": [USER, answers[1], results[1], ANSWER], "tools": others},
    ]
    plain, of_parts, first, second = read(*rows).conversations
    assert (plain.messages[0].content, of_parts.messages[0].content) == ("i", "p")
    for found, expected, given in zip((first, second), arguments, (tools, others), strict=True):
        assert json.loads(found.messages[1].calls)[0]["function"]["arguments"] == expected
        assert json.loads(found.tools)[0]["function"] == given[0]
    assert [one.messages[2].content for one in (first, second)] == ['{"a": 1}', "t"]


def test_parallel_calls_in_turns_of_their_own_are_one_answer(read):
    named = ({"name": name, "arguments": {}} for name in ("first", "second"))
    turns = ({"from": "function_call", "value": json.dumps(call)} for call in named)
    messages = only(read, {"from": "human", "value": "i"}, *turns).messages
    assert len(messages) == 2
    calls = json.loads(messages[1].calls)
    assert [call["function"]["name"] for call in calls] == ["first", "second"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_in_a_key_of_its_own(read, key):
    turn = {**ANSWER, key: "\nwhy\n"}
    assert only(read, USER, turn).messages[1].content == "<think>\nwhy\n</think>\n\no"
    both = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\no", key: "why"}
    assert only(read, USER, both).messages[1].content == both["content"]
    assert "differ" in refusal(read, {"messages": [USER, {**both, key: "other"}]})
    call = {"role": "assistant", "content": None, key: "why", "tool_calls": [CALL]}
    assert only(read, USER, call).messages[1].content == "<think>\nwhy\n</think>\n\n"


def test_a_thought_in_a_column_of_a_single_turn(read):
    found = read({"question": "i", "answer": "o", "reasoning_content": "why"})
    assert found.conversations[0].messages[1].content == "<think>\nwhy\n</think>\n\no"
    assert found.unused == ()


def test_parts_of_text_are_joined(read):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert only(read, {"role": "user", "content": parts}, ANSWER).messages[0].content == "a\nb"
    parts = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "b"}]
    message = refusal(read, {"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert "messages[0].content[0] is a part of type 'image_url'" in message


def test_turns_in_any_order(read):
    assert [m.role for m in only(read, ANSWER, USER, ANSWER).messages] == [
        *("assistant", "user", "assistant")
    ]
    assert [m.role for m in only(read, USER, USER, ANSWER, ANSWER).messages] == [
        *("user", "user", "assistant", "assistant")
    ]
    found = read({"messages": [USER, ANSWER, USER]})
    assert len(found.conversations[0].messages) == 2 and found.shortened == 1
    empty = {"role": "assistant", "content": "", "weight": 0}
    assert [m.content for m in only(read, USER, empty, *TURNS).messages] == ["i", "", "i", "o"]
    assert "messages[1].content is empty" in refusal(
        read, {"messages": [USER, {"role": "assistant", "content": ""}]}
    )


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (
            {**ANSWER, "tool_calls": [{"function": {"arguments": {"a": 1}}}]},
            "is not a call with the name",
        ),
        ({**ANSWER, "tool_calls": "add(1)"}, "is text, but not JSON"),
        ({**ANSWER, "tool_calls": [CALL], "function_call": CALL}, "both hold calls"),
        ({"role": "critic", "content": "o"}, "messages[1].role is 'critic'; supported are system"),
    ],
)
def test_what_cannot_be_read_is_named(read, turn, words):
    assert words in refusal(read, {"messages": [USER, turn]})
    assert "not a function with a name" in refusal(read, {"messages": TURNS, "tools": [{"x": 1}]})


def test_tools_given_twice_must_agree(read):
    turn = {"role": "system", "content": "S", "tools": [TOOL]}
    assert only(read, turn, *TURNS, tools=[TOOL]).tools == TOOL_TEXT
    other = [{**TOOL, "name": "other"}]
    assert "tools differ" in refusal(read, {"messages": [turn, *TURNS], "tools": other})


def learnt(tmp_path, row, **data):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    tok = tokenizer("byte")
    prepared = prepare(DataConfig(train=str(file), **data), str(file), tok)
    ids, supervised = prepared.examples[0]
    return tok.decode(ids[supervised]), tok.decode(ids), prepared


def test_only_the_last_answer(tmp_path):
    turns = [USER, {**ANSWER, "content": "first"}, *TURNS]
    for row in (
        {"messages": turns},
        {"instruction": "i", "output": "o", "history": [["i", "first"]]},
    ):
        for template in ("tokenizer", "chatml"):
            text, whole, prepared = learnt(tmp_path, row, loss_on="last", template=template)
            assert text.replace("<|im_end|>", "") == "o</s>" and "first" in whole
            assert prepared.report.loss_on == "last" and prepared.report.untrained == 1


def test_roles_in_the_loss(tmp_path):
    turns = [USER, {**ANSWER, "content": "first"}, {**USER, "content": "next"}]
    text, _, prepared = learnt(tmp_path, {"messages": turns}, roles_to_train=["user", "assistant"])
    assert text == "i<|im_end|>first<|im_end|>next<|im_end|>"
    assert prepared.report.loss_on == "turns" and "user, assistant" in prepared.report.loss_reason
    text, _, _ = learnt(tmp_path, {"messages": turns}, roles_to_train=["user"])
    assert text == "i<|im_end|>next<|im_end|>"
    # A turn's own key comes first.
    own = [{**USER, "train": True}, {**ANSWER, "train": False}]
    assert learnt(tmp_path, {"messages": own})[0] == "i<|im_end|>"
    row = {"instruction": "i", "output": "o"}
    assert learnt(tmp_path, row, roles_to_train=["user"])[0] == "i<|im_end|>"


def test_segments_of_text(tmp_path):
    segments = [
        {"label": False, "text": "<s>a "},
        {"label": True, "text": "b</s>"},
        {"label": False, "text": "c"},
        {"label": True, "text": "d"},
    ]
    text, whole, prepared = learnt(tmp_path, {"segments": segments})
    assert (text, whole) == ("b</s>d", "<s>a b</s>cd")
    assert (prepared.report.format, prepared.report.loss_on) == ("segments", "labels")
    assert prepared.examples[0][0][0] == 1  # <s> is the token


def test_token_ids_with_labels(tmp_path):
    row = {
        "input_ids": [3, 3, 1, 10, 11, 12],
        "labels": [-100, -100, -100, -100, 11, 12],
        "attention_mask": [0, 0, 1, 1, 1, 1],
    }
    _, _, prepared = learnt(tmp_path, row)
    ids, supervised = prepared.examples[0]
    assert ids.tolist() == [1, 10, 11, 12] and supervised.tolist() == [0, 0, 1, 1]
    assert prepared.report.loss_on == "labels"
    _, _, prepared = learnt(tmp_path, {"input_ids": [1, 10, 11]})
    assert prepared.examples[0][1].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input_ids": [1, 2], "labels": [2, -100]}, "labels[0] is 2, but input_ids[0] is 1"),
        ({"input_ids": [1, 2], "labels": [-100]}, "labels has 1 value, input_ids has 2"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, "no token is trained on"),
        ({"input_ids": [1, -2]}, "input_ids has -2"),
        ({"input_ids": "1 2"}, "input_ids is not a list of integers"),
        ({"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}, "is 0 between tokens"),
        ({"segments": [{"label": 1, "text": "x"}]}, "segments[0].label is 1"),
        ({"segments": [{"label": False, "text": "x"}]}, "no segment is trained on"),
        ({"segments": "x"}, "segments is not a list"),
    ],
)
def test_ready_made_rows_that_cannot_be_used_are_named(read, row, words):
    assert words in refusal(read, row)


@pytest.mark.parametrize("template", ["chatml", "llama2", "none"])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": TURNS, "tools": [TOOL]}, "the row has tools"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [CALL]}]}, "a tool's call or result"),
        ({"messages": [ANSWER]}, "do not alternate"),
        ({"messages": [{**USER, "train": True}, ANSWER]}, "a turn other than an answer"),
    ],
)
def test_what_a_built_in_template_has_no_place_for(tmp_path, template, row, words):
    with pytest.raises(UserError, match=f"row 1: .*{words}"):
        learnt(tmp_path, row, template=template)
