"""Preference data: the shapes that it comes in, its exact masks, and what is refused."""

import json

import numpy as np
import pytest
from support.data_tokenizers import tokenizer

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.data.validation_split import split_fraction
from intel_ft.errors import UserError
from intel_ft.templates.answers import Judged, Pairs

USER = {"role": "user", "content": "i"}
GOOD, BAD = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
PLAIN = {"prompt": "i", "chosen": "yes", "rejected": "no"}
FIRST = [USER, {"role": "assistant", "content": "o"}]
HUMAN = {"from": "human", "value": "i"}
JUDGED = {"prompt": "i", "completion": "yes", "label": True}
OTHER = {"prompt": "j", "completion": "no", "label": False}


@pytest.fixture
def read(tmp_path):
    def read(*rows, answers="pairs", **data):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(train=str(file), **{"template": "none"} | data)
        return prepare(config, str(file), tokenizer("byte"), answers=answers)

    return read


def texts(examples, index):
    """What is only read, and what is trained on."""
    tokens, supervised = examples[index]
    decode = tokenizer("byte").decode
    return decode(tokens[~supervised]), decode(tokens[supervised])


@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "i", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # UltraFeedback
        {"prompt": "i", "chosen": [GOOD], "rejected": "no", "score_chosen": 8, "score_rejected": 2},
        {
            "chosen": "\n\nHuman: i\n\nAssistant: yes",  # HH-RLHF
            "rejected": "\n\nHuman: i\n\nAssistant: no",
        },
        {"instruction": "i", "input": "", "chosen": "yes", "rejected": "no"},  # LLaMA-Factory
        {
            "conversations": [HUMAN],
            "chosen": {"from": "gpt", "value": "yes"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        {"question": "i", "chosen": "yes", "rejected": "no"},
    ],
)
def test_a_pair_is_two_answers_to_one_prompt(read, row) -> None:
    pairs = read(row).examples
    assert isinstance(pairs, Pairs) and len(pairs) == 1
    assert [texts(pairs.answers, n) for n in (0, 1)] == [("<s>i", "yes</s>"), ("<s>i", "no</s>")]


@pytest.mark.parametrize("loss_on", ["completion"])
def test_earlier_answers_are_context(read, loss_on) -> None:
    row = {"chosen": [*FIRST, USER, GOOD], "rejected": [*FIRST, USER, BAD]}
    pairs = read(row, loss_on=loss_on).examples
    assert texts(pairs.answers, 0)[1] == "yes</s>" and texts(pairs.answers, 1)[1] == "no</s>"
    history = read({**PLAIN, "history": [["a", "XY"]], "system": "S"}).examples
    context, learned = texts(history.answers, 1)
    assert learned == "no</s>" and "XY" in context and "S" in context


def test_columns_may_have_other_names(read) -> None:
    row = {"q": "i", "better": "yes", "worse": "no"}
    names = {"prompt": "q", "chosen": "better", "rejected": "worse"}
    assert texts(read(row, columns=names).examples.answers, 1) == ("<s>i", "no</s>")


@pytest.mark.parametrize(
    "rows",
    [
        (JUDGED, OTHER),
        (
            {"instruction": "i", "input": "", "output": "yes", "kto_tag": True},
            {"instruction": "j", "input": "", "output": "no", "kto_tag": False},
        ),
        (
            {"messages": [USER, GOOD], "label": "true"},
            {"messages": [{**USER, "content": "j"}, BAD], "label": "false"},
        ),
        (
            {"prompt": [USER], "completion": [GOOD], "label": 1},
            {"prompt": [{**USER, "content": "j"}], "completion": [BAD], "label": 0},
        ),
    ],
)
def test_a_judged_answer_and_the_answer_to_another_prompt(read, rows) -> None:
    examples = read(*rows, answers="judged").examples
    assert isinstance(examples, Judged) and examples.good.tolist() == [True, False]
    assert [texts(examples, n) for n in (0, 1)] == [("<s>i", "yes</s>"), ("<s>j", "no</s>")]
    others = [texts(examples.others, n) for n in (0, 1)]
    assert others == [("<s>i", "no</s>"), ("<s>j", "yes</s>")]


def test_pairs_are_judged_answers_too(read) -> None:
    examples = read(PLAIN, {**PLAIN, "prompt": "j"}, answers="judged").examples
    assert examples.good.tolist() == [True, False, True, False]
    for index in range(4):  # never its own prompt's
        assert texts(examples.others, index)[0] == texts(examples, index)[0]


def test_a_long_answer_takes_its_pair_with_it(read) -> None:
    long = {**PLAIN, "rejected": "n" * 40}
    prepared = read(PLAIN, long, {**PLAIN, "prompt": "k"}, max_length=16, on_long="drop")
    assert len(prepared.examples) == 2 and prepared.report.dropped == 1
    assert texts(prepared.examples.answers, 3) == ("<s>k", "no</s>")
    assert [c.messages[0].content for c in prepared.conversations] == ["i", "k"]
    judged = read(
        JUDGED,
        {**JUDGED, "completion": "n" * 40},
        OTHER,
        answers="judged",
        max_length=16,
        on_long="drop",
    )
    assert judged.examples.good.tolist() == [True, False] and judged.report.dropped == 1


def test_selections_keep_pairs_together(read) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "y" * n, "rejected": "n" * 2} for n in range(3, 9)]
    prepared = read(*rows)
    training, validation = split_fraction(prepared, 0.34, seed=1)
    assert len(training.examples) == 4 and len(validation.examples) == 2
    found = {
        texts(part.examples.answers, 2 * n)
        for part in (training, validation)
        for n in range(len(part.examples))
    }
    assert found == {(f"<s>p{n}", "y" * n + "</s>") for n in range(3, 9)}
    good = validation.good_answers()
    assert len(good.examples) == len(good.conversations) == 2
    assert texts(good.examples, 0)[1] == good.conversations[0].messages[-1].content + "</s>"
    judged = read(JUDGED, OTHER, {**JUDGED, "prompt": "k"}, answers="judged")
    assert len(judged.good_answers().examples) == 2
    part = judged.select(np.array([1, 2])).examples
    assert part.good.tolist() == [False, True] and len(part.others) == 2


def test_bad_rows_are_counted_and_left_out(read) -> None:
    report = read(
        PLAIN, {**PLAIN, "rejected": "yes"}, {**PLAIN, "chosen": ""}, on_bad="drop"
    ).report
    assert (report.rows, report.examples, report.bad) == (3, 1, 2)
    assert "chosen and rejected are equal" in report.bad_examples


def test_auto_reads_what_the_columns_tell(read) -> None:
    assert isinstance(read(PLAIN, answers="auto").examples, Pairs)
    assert isinstance(read(JUDGED, OTHER, answers="auto").examples, Judged)
    plain = read({"prompt": "i", "completion": "o"}, answers="auto")
    assert type(plain.examples).__name__ == "Examples" and plain.good_answers() is plain


@pytest.mark.parametrize(
    ("rows", "answers", "words"),
    [
        ([{"prompt": "i", "completion": "o"}], "pairs", "needs the columns chosen and rejected"),
        (
            [{"prompt": "i", "chosen_response": "a", "rejected_response": "b"}],
            "pairs",
            "did you mean data.columns={chosen: chosen_response, rejected: rejected_response}",
        ),
        ([{"prompt": "i", "Chosen": "a", "rejected": "b"}], "pairs", "{chosen: Chosen}"),
        ([JUDGED], "pairs", "column label judges single answers"),
        ([{**PLAIN, "score_chosen": 2, "score_rejected": 9}], "pairs", "are columns swapped?"),
        ([{**PLAIN, "rejected": "yes"}], "pairs", "row 1: chosen and rejected are equal"),
        ([{**PLAIN, "rejected": " yes\n"}], "pairs", "chosen and rejected are equal"),
        ([{**PLAIN, "chosen": ""}], "pairs", "chosen is empty"),
        ([{**PLAIN, "rejected": None}, PLAIN], "pairs", "rejected is missing"),
        ([{**PLAIN, "prompt": " "}], "pairs", "prompt is empty"),
        ([{"chosen": "yes", "rejected": "no"}], "pairs", "chosen has no prompt"),
        (
            [{"chosen": [USER], "rejected": [USER, BAD]}],
            "pairs",
            "chosen does not end with an assistant turn",
        ),
        (
            [{"chosen": [*FIRST, USER], "rejected": [*FIRST, USER]}],
            "pairs",
            "chosen does not end with an assistant turn",
        ),
        (
            [{"chosen": [{**USER, "content": "x"}, GOOD], "rejected": [USER, BAD]}],
            "pairs",
            "differ in turn 1",
        ),
        (
            [{"chosen": [*FIRST, USER, GOOD], "rejected": [USER, BAD]}],
            "pairs",
            "chosen has 4 turns and rejected 2",
        ),
        (
            [{"prompt": "z", "chosen": [USER, GOOD], "rejected": [USER, BAD]}],
            "pairs",
            "prompt is not in the turns of chosen",
        ),
        (
            [{"prompt": [GOOD], "chosen": [GOOD], "rejected": [BAD]}],
            "pairs",
            "user and assistant do not alternate",
        ),
        ([{"prompt": [USER], "chosen": [], "rejected": [BAD]}], "pairs", "chosen is empty"),
        ([{**PLAIN, "chosen": 0.5}], "pairs", "chosen is 0.5, not text"),
        (
            [{"prompt": [USER], "chosen": [{**GOOD, "weight": 0}], "rejected": [BAD]}],
            "pairs",
            "no answer is trained on",
        ),
        ([{**PLAIN, "images": ["a.png"]}], "pairs", "images: only text"),
        (
            [{**PLAIN, "rejected": "n" * 2000}],
            "pairs",
            "answers are too long, and the longest has 2003",
        ),
        ([PLAIN, {"prompt": "i", "completion": "o"}], "pairs", "row 2: chosen is missing"),
        ([{"prompt": "i", "completion": "o"}], "judged", "a column label (true or false)"),
        ([JUDGED, {**OTHER, "label": "maybe"}], "judged", "row 2: label is 'maybe'"),
        ([JUDGED, {**OTHER, "label": None}], "judged", "row 2: label is None"),
        ([JUDGED, JUDGED], "judged", "all answers are good"),
        ([OTHER], "judged", "all answers are bad"),
        ([JUDGED, {**OTHER, "completion": ""}], "judged", "completion is empty"),
        (
            [{"messages": [USER], "label": True}],
            "judged",
            "messages does not end with an assistant turn",
        ),
    ],
)
def test_data_that_cannot_be_compared_is_refused_in_a_line(read, rows, answers, words) -> None:
    with pytest.raises(UserError) as caught:
        read(*rows, answers=answers)
    assert words in str(caught.value) and "\n" not in str(caught.value)
