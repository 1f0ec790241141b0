"""Columns and keys that other trainers give a meaning: honoured, refused by name, or named."""

import json

import pytest
import yaml
from datasets import Dataset, Features, Image, Value
from support.data_tokenizers import tokenizer

from intel_ft.config_sections import DataConfig
from intel_ft.conversations.from_rows import read_conversations
from intel_ft.data.prepare import prepare
from intel_ft.errors import UserError
from intel_ft.sources.rows import load_rows
from intel_ft.sources.spellings import as_override
from intel_ft.templates.formats import Conversation, Message, describe_unused

USER, ANSWER = {"role": "user", "content": "i"}, {"role": "assistant", "content": "o"}
TURNS = [USER, ANSWER]
DIALOG = (Message("user", "i"), Message("assistant", "o"))
ALPACA = {"instruction": "i", "output": "o"}


@pytest.fixture
def trained_text(tmp_path):
    """What is trained on, and what is only read, of one row."""

    def trained_text(row, **data):
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(row) + "\n")
        prepared = prepare(DataConfig(train=str(file), **data), str(file), tokenizer("byte"))
        ids, supervised = prepared.examples[0]
        return tokenizer("byte").decode(ids[supervised]), tokenizer("byte").decode(ids)

    return trained_text


def refusal(read, *rows, **data):
    with pytest.raises(UserError) as caught:
        read(*rows, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("flag", "template"),
    [
        *(({"weight": 0}, name) for name in ("tokenizer", "chatml", "llama2", "alpaca", "dolly")),
        ({"weight": 0.0}, "none"),
        ({"train": False}, "none"),
        ({"training": False}, "none"),
        ({"loss": False}, "none"),
        ({"masked": True}, "none"),
    ],
)
def test_an_answer_out_of_the_loss_is_read_and_not_trained_on(trained_text, flag, template):
    turns = [USER, {**ANSWER, "content": "XYZ", **flag}, USER, ANSWER]
    learned, whole = trained_text({"messages": turns}, template=template)
    assert learned.replace("<|im_end|>", "") == "o</s>"
    _, expected = trained_text(
        {"messages": [*TURNS[:1], {**ANSWER, "content": "XYZ"}, *TURNS]}, template=template
    )
    assert whole == expected and "XYZ" in whole


def test_a_cut_in_an_answer_out_of_the_loss_goes_back_to_the_last_trained_one(tmp_path):
    file = tmp_path / "rows.jsonl"
    turns = [*TURNS, USER, {**ANSWER, "content": "X" * 40, "weight": 0}, *TURNS]
    file.write_text(json.dumps({"messages": turns}))
    data = DataConfig(train=str(file), template="none", max_length=20, on_long="truncate")
    prepared = prepare(data, str(file), tokenizer("byte"))
    ids, supervised = prepared.examples[0]
    assert tokenizer("byte").decode(ids) == "<s>io</s>" and supervised.tolist() == [0, 0, 1, 1]
    assert prepared.report.truncated == 1


@pytest.mark.parametrize(
    "flag",
    [{"weight": 1}, {"weight": None}, {"train": True}, {"loss": True}, {"masked": False}],
)
def test_an_answer_in_the_loss_is_trained_on(trained_text, flag):
    learned, _ = trained_text({"messages": [USER, {**ANSWER, **flag}]}, template="none")
    assert learned == "o</s>"


@pytest.mark.parametrize(
    ("turns", "data", "words"),
    [
        ([USER, {**ANSWER, "weight": 0.5}], {}, "messages[1].weight is 0.5"),
        ([USER, {**ANSWER, "weight": -1}], {}, "messages[1].weight is -1"),
        ([USER, {**ANSWER, "train": "no"}], {}, "messages[1].train is 'no'"),
        ([USER, {**ANSWER, "weight": 0, "train": True}], {}, "weight and train contradict"),
        ([USER, {**ANSWER, "weight": 0}], {}, "no answer is trained on"),
        ([USER, {**ANSWER, "loss": False}, *TURNS], {"loss_on": "all"}, "data.loss_on is all"),
        ([{**USER, "train": False}, ANSWER], {"loss_on": "all"}, "data.loss_on is all"),
        ([USER, {**ANSWER, "train_detail": [{"train": True}]}], {}, "messages[1].train_detail"),
    ],
)
def test_a_flag_that_cannot_be_honoured_is_named(read, turns, data, words):
    assert words in refusal(read, {"messages": turns}, **data)


@pytest.mark.parametrize("key", ["image", "images", "audio", "video", "loss_scale"])
def test_a_key_of_a_turn_that_is_not_supported_is_named(read, key):
    row = {"messages": [USER, {**ANSWER, key: ["x"]}]}
    assert f"messages[1].{key}: " in refusal(read, row)
    assert read({"messages": [USER, {**ANSWER, key: None}]}).conversations == [Conversation(DIALOG)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[(name, ["a.jpg"]) for name in ("images", "audios", "videos", "image", "audio", "video")],
        ("tool_calls", [{"name": "f"}]),
        ("chat_template_kwargs", {"x": 1}),
    ],
)
@pytest.mark.parametrize("row", [{"messages": TURNS}, {"prompt": "i", "completion": "o"}])
def test_a_column_that_is_not_supported_is_refused_where_it_holds_something(
    read, column, value, row
):
    assert f"row 1: {column}: " in refusal(read, {**row, column: value})


def test_a_column_of_images_is_refused_under_any_name(tmp_path):
    kinds = {"prompt": Value("string"), "completion": Value("string"), "photo": Image()}
    row = {"prompt": ["i"], "completion": ["o"], "photo": [{"path": None, "bytes": b"x"}]}
    file = tmp_path / "rows.parquet"
    Dataset.from_dict(row, features=Features(kinds)).to_parquet(file)
    with pytest.raises(UserError, match="column photo holds images"):
        read_conversations(load_rows(str(file)), DataConfig(train=str(file)))


def test_rows_are_not_to_be_dropped_where_all_are_bad(read):
    bad = {"messages": TURNS, "images": ["a.jpg"]}
    assert "data.on_bad" not in refusal(read, bad, bad)
    assert "data.on_bad" not in refusal(read, bad, bad, on_bad="drop")
    assert "or set data.on_bad to drop" in refusal(read, bad, {"messages": TURNS})


def test_an_empty_column_is_only_named(read):
    for value in (None, [], "", "[]"):
        found = read({"messages": TURNS, "images": value, "tools": value, "id": 3})
        assert found.conversations == [Conversation(DIALOG)]
        assert found.unused == ("images", "id")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "i", "completion": "o", "label": True}, "column label marks"),
        ({"prompt": "i", "completion": "o", "label": 0}, "column label marks"),
        ({"messages": TURNS, "label": False}, "column label marks"),
        ({"messages": TURNS, "kto_tag": True}, "column kto_tag marks"),
        ({"instruction": "i", "output": "o", "label": "true"}, "column label marks"),
        ({"prompt": "i", "chosen": "o", "rejected": "x"}, "chosen, rejected hold preferences"),
        ({"input": {"messages": [USER]}, "preferred_output": [ANSWER]}, "preferred_output hold"),
        ({"chosen": TURNS, "rejected": TURNS}, "chosen, rejected hold preferences"),
        ({"messages": TURNS, "rejected_response": "x"}, "rejected_response hold"),
        ({"instruction": "i", "completion": "o", "label": True}, "column label marks"),
        ({"prompt": "i", "completions": ["o"], "labels": [True]}, "completions with labels"),
    ],
)
def test_preferences_are_refused(read, row, words):
    assert words in refusal(read, row)


def test_a_label_that_is_a_topic_is_only_named(read):
    rows = [{"prompt": "i", "completion": "o", "label": label} for label in ("sport", "news")]
    assert read(*rows).unused == ("label",)


def test_other_answers_are_left_out_if_the_format_is_named(read):
    row = {"prompt": "i", "chosen": "o", "rejected": "x"}
    found = read(row, format="prompt_completion", columns={"completion": "chosen"})
    assert found.conversations == [Conversation(DIALOG)] and found.unused == ("rejected",)


def test_system_and_history_are_turns(read):
    row = {**ALPACA, "input": "c", "system": "S", "history": [["a", "b"], ["c", "d"]]}
    earlier = (
        Message("system", "S"),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
        Message("assistant", "d"),
    )
    found = read(row, {**ALPACA, "input": "", "system": "", "history": []})
    assert found.conversations == [
        Conversation((*earlier, Message("user", "i", "c"), Message("assistant", "o"))),
        Conversation(DIALOG),
    ]
    assert found.unused == ()
    assert "history is not a list of pairs" in refusal(read, {**ALPACA, "history": [["a"]]})
    assert "history is not a list of pairs" in refusal(read, {**ALPACA, "history": "a"})
    assert "history[0][1] is empty" in refusal(read, {**ALPACA, "history": [["a", ""]]})


def test_a_system_column_beside_messages(read):
    system = Message("system", "S")
    assert read({"messages": TURNS, "system": "S"}).conversations[0].messages == (system, *DIALOG)
    turns = [{"role": "system", "content": "S"}, *TURNS]
    assert read({"messages": turns, "system": "S"}).conversations[0].messages == (system, *DIALOG)
    assert "system differs" in refusal(read, {"messages": turns, "system": "T"})


@pytest.mark.parametrize(
    "answer", [("instruction", "output"), ("instruction", "response"), ("question", "answer")]
)
@pytest.mark.parametrize("context", ["input", "context"])
def test_a_context_is_used_under_both_names(read, answer, context):
    row = {answer[0]: "i", context: "c", answer[1]: "o"}
    found = read(row)
    assert found.conversations[0].messages[0] == Message("user", "i", "c") and not found.unused
    other = ({"input", "context"} - {context}).pop()
    assert "input and context both" in refusal(read, {**row, other: "d"})


def test_turns_of_prompt_and_completion(read):
    prompt = [{"role": "system", "content": "S"}, USER, ANSWER, USER]
    found = read({"prompt": prompt, "completion": [ANSWER]})
    assert found.format == "messages"
    assert found.conversations[0].messages == (
        Message("system", "S"),
        Message("user", "i"),
        Message("assistant", "o", trained=False),
        *DIALOG,
    )
    found = read({"prompt": prompt, "completion": [ANSWER]}, loss_on="all")
    assert all(m.in_loss for m in found.conversations[0].messages if m.role == "assistant")


@pytest.mark.parametrize("rest", [[USER], [USER, {**ANSWER, "weight": 0}]])
def test_turns_after_the_last_trained_answer_are_left_out_and_counted(read, rest):
    found = read({"messages": [*TURNS, *rest]}, {"messages": TURNS})
    assert found.conversations == [Conversation(DIALOG)] * 2 and found.shortened == 1


def test_developer_and_names_of_sharegpt(read):
    turns = [{"from": "human", "value": "i"}, {"from": "gpt", "value": "o"}]
    found = read({"conversations": turns, "system": "S"}, columns={"messages": "conversations"})
    assert found.conversations[0].messages == (Message("system", "S"), *DIALOG)
    found = read({"messages": [{"role": "developer", "content": "S"}, *TURNS]})
    assert found.conversations[0].messages == (Message("system", "S"), *DIALOG)


def test_keys_and_columns_without_effect_are_named_once(read):
    named = {**USER, "name": "Ann"}
    found = read({"id": 1, "messages": [named, ANSWER]}, {"id": 2, "messages": [named, ANSWER]})
    assert found.unused == ("id", "messages[].name")
    turns = [{**USER, "value": 3}, {"from": "gpt", "value": "o", "content": "x"}]
    assert read({"messages": turns}).unused == ("messages[].content", "messages[].value")
    # A key that is false is named, and so is a key of a part.
    part = {"type": "text", "text": "x", "cache_control": "y"}
    talk = [USER, {"role": "assistant", "content": [part], "trainable": False}]
    assert read({"messages": talk}).unused == (
        "messages[].content[].cache_control",
        "messages[].trainable",
    )
    talk = [USER, {"role": "assistant", "content": [part | {"train": 0}]}]
    assert "content[0].train: an answer is trained on as a whole" in refusal(
        read, {"messages": talk}
    )


def test_the_report_names_what_has_no_effect(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{**ALPACA, "id": 1, "system_prompt": "S"}, {**ALPACA, "output": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=str(file), template="none", on_bad="drop")
    report = prepare(data, str(file), tokenizer("byte")).report
    assert (report.examples, report.bad) == (1, 1) and report.unused == ("id", "system_prompt")
    text = "\n".join(report.lines())
    assert (
        "not used: id, system_prompt (did you mean data.columns={system: system_prompt}?)" in text
    )
    assert "dropped 1 of 2 rows" in text and "row 2: output is empty" in text


def test_a_system_prompt_for_ready_made_text_is_said_to_have_no_effect(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "i o"}))
    data = DataConfig(train=str(file), system_prompt="S")
    assert "data.system_prompt has no effect" in " ".join(
        prepare(data, str(file), tokenizer("byte")).report.lines()
    )


def test_the_report_counts_answers_and_turns_that_are_not_trained_on(tmp_path):
    file = tmp_path / "rows.jsonl"
    turns = [USER, {**ANSWER, "train": False}, *TURNS, USER]
    file.write_text(json.dumps({"messages": turns}))
    report = prepare(DataConfig(train=str(file)), str(file), tokenizer("byte")).report
    assert (report.untrained, report.shortened) == (1, 1)
    text = "\n".join(report.lines())
    assert "as marked in the data: 1 answer" in text and "1 conversation shortened" in text


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            ["Instruction", "Input", "Output"],
            "{instruction: Instruction, output: Output, input: Input}",
        ),
        (["query", "response"], "{question: query, answer: response}"),
        (["input", "output"], "{prompt: input, completion: output}"),
        (["input_text", "output_text"], "{prompt: input_text, completion: output_text}"),
        (["prompt", "response"], "{completion: response}"),
        (["system_prompt", "question", "response"], "{answer: response, system: system_prompt}"),
        (["conversations"], "{messages: conversations}"),
        (["content", "url"], "{text: content}"),
        (["instrution", "input", "output"], "{instruction: instrution}"),
        (["questions", "anwser"], "{question: questions, answer: anwser}"),
    ],
)
def test_known_other_names_are_proposed_and_work(read, columns, words):
    row = dict.fromkeys(columns, "x")
    if columns == ["conversations"]:
        row = {"conversations": TURNS}
    message = refusal(read, row)
    assert f"did you mean data.columns={words}?" in message
    pairs = dict(pair.split(": ") for pair in words.strip("{}").split(", "))
    assert len(read(row, columns=pairs).conversations) == 1


@pytest.mark.parametrize(
    ("column", "override"),
    [
        ("on", '{output: "on"}'),
        (" output", '{output: " output"}'),
        ("7", '{output: "7"}'),
        ("a: b", '{output: "a: b"}'),
        ("Réponse", "{output: Réponse}"),
    ],
)
def test_names_that_yaml_would_change_are_in_quotes(column, override):
    assert as_override({"output": column}) == f"data.columns={override}"
    assert yaml.safe_load(override) == {"output": column}


def test_a_hint_names_only_columns_that_the_format_uses(read):
    alpaca = read({**ALPACA, "Input": "c", "System": "S"})
    assert describe_unused(alpaca.unused, "alpaca") == (
        "not used: Input (did you mean data.columns={input: Input}?),"
        " System (did you mean data.columns={system: System}?)"
    )
    assert describe_unused(["Input", "messages[].name"], "messages") == (
        "not used: Input, messages[].name"
    )


def test_columns_by_name(read):
    row = {"q": "i", "a": "o", "output": "other"}
    found = read(row, columns={"instruction": "q", "output": "a"})
    assert found.conversations == [Conversation(DIALOG)] and found.unused == ("output",)
    swapped = read(
        {"instruction": "o", "output": "i"},
        columns={"instruction": "output", "output": "instruction"},
    )
    assert swapped.conversations == [Conversation(DIALOG)]
    assert "no column anwser for output: did you mean answer?" in refusal(
        read, {"question": "i", "answer": "o"}, columns={"output": "anwser"}
    )
    assert "no format has a column outptu: did you mean output?" in refusal(
        read, row, columns={"outptu": "a"}
    )
    assert "two names have the same column" in refusal(
        read, row, columns={"instruction": "q", "output": "q"}
    )


def test_integers_are_text(read):
    found = read({"instruction": "i", "output": 7}, {"instruction": 1, "output": "o"})
    assert [c.messages[1].content for c in found.conversations] == ["7", "o"]


def test_a_mapping_the_wrong_way_round_is_turned(read):
    row = {"Frage": "x", "Antwort": "y"}
    message = refusal(read, row, columns={"Frage": "question", "Antwort": "answer"})
    assert "write data.columns={question: Frage}" in message


def test_white_space_around_a_name_is_shown(read):
    row = {"Frage": "x", "Antwort ": "y"}
    assert 'the columns Frage, "Antwort ";' in refusal(read, row)
    message = refusal(read, row, columns={"question": "Frage", "answer": "Antwort"})
    assert 'did you mean "Antwort "?' in message
