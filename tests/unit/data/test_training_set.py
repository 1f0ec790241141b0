"""Several sources: each by its own settings, joined in order, mixed by weights."""

import json

import numpy as np
import pytest
from support.data_tokenizers import tokenizer

from intel_ft.config import build
from intel_ft.data.prepare import prepare
from intel_ft.data.training_set import training_and_validation
from intel_ft.data.validation_split import shared_rows
from intel_ft.errors import UserError


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def sources(tmp_path):
    """A chat, a table whose columns have names of their own, and plain text."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]
    return {
        "chat": write(tmp_path / "chat.jsonl", [{"messages": turns}] * 4),
        "table": write(
            tmp_path / "table.jsonl", [{"Frage": f"f{n}", "Antwort": f"a{n}"} for n in range(10)]
        ),
        "text": write(tmp_path / "text.jsonl", [{"text": "z" * 40}, {"text": "zz"}]),
    }


def config(train, **data):
    sections = {"model": {"name_or_path": "m"}, "output": {"directory": "o"}}
    return build({**sections, "data": {"train": train, **data}}, "test")


def read(train, **data):
    return training_and_validation(config(train, **data).data, tokenizer("byte"), 3)


def several(sources, **weights):
    columns = {"question": "Frage", "answer": "Antwort"}
    train = [
        {"path": sources["chat"], "template": "chatml"},
        {"path": sources["table"], "columns": columns, "template": "none", "split": "train[:6]"},
        {"path": sources["text"], "format": "text", "on_long": "split"},
    ]
    return [
        {**one, "weight": weights[name]} if weights else one
        for one, name in zip(train, sources, strict=True)
    ]


def texts(tokenized):
    return [
        tokenizer("byte").decode(tokenized.examples[place][0]).removeprefix("<s>")
        for place in range(len(tokenized.examples))
    ]


def test_each_source_is_read_by_its_own_settings(sources):
    training, validation = read(several(sources), max_length=32)
    assert validation is None
    found = texts(training)
    assert found[0].startswith("<|im_start|>user") and found[4] == "f0a0</s>"
    assert len(found) == 4 + 6 + 3 and found[-1] == "zz</s>"
    assert [report.examples for report in training.reports] == [4, 6, 3]
    assert training.template == "chatml" and training.parts == ()
    assert "prompts to the trained model get the template chatml" in training.lines()
    assert training.report.examples == 13 and training.report.format == (
        "messages, question_answer, text"
    )


def test_a_set_of_several_sources_knows_what_each_knows(sources):
    training, _ = read(several(sources), max_length=32)
    examples = training.examples
    pairs = [examples[place] for place in range(len(examples))]
    assert examples.lengths.tolist() == [len(tokens) for tokens, _ in pairs]
    assert examples.supervised_counts.tolist() == [mask.sum() for _, mask in pairs]
    assert examples.highest_id == max(tokens.max() for tokens, _ in pairs)
    assert examples.ids_beyond(examples.highest_id) == {examples.highest_id}
    assert len(set(examples.hashes.tolist())) == 1 + 6 + 3  # all chats are the same


def test_weights_are_recorded_and_said(sources):
    training, _ = read(several(sources, chat=1, table=2, text=1), max_length=32)
    assert [(part.examples, part.per_epoch) for part in training.parts] == [(4, 3), (6, 7), (3, 3)]
    facts = training.statistics()["sources"]
    assert [(one["source"], one["per_epoch"]) for one in facts] == [
        (sources["chat"], 3),
        (sources["table"], 7),
        (sources["text"], 3),
    ]
    line = f"an epoch takes 7 of its 13 examples (53.8 %) from {sources['table']}, which has 6:"
    assert any(text.startswith(line) for text in training.lines())


def test_a_maximum_of_examples_takes_the_first(sources):
    train = [sources["chat"], {**several(sources)[1], "max_examples": 2}]
    training, _ = read(train, template="none")
    assert texts(training)[-2:] == ["f0a0</s>", "f1a1</s>"] and len(training.examples) == 6
    assert training.reports[1].examples == 2
    assert training.reports[1].tokens == training.examples.lengths[-2:].sum()


def test_each_source_gives_its_share_to_validation(sources):
    train = several(sources, chat=1, table=2, text=1)
    training, validation = read(train, max_length=32, eval_fraction=0.25)
    assert [report.examples for report in validation.reports] == [1, 2, 1]
    assert [part.examples for part in training.parts] == [3, 4, 2]
    assert validation.parts == ()
    everything, _ = read(several(sources), max_length=32)
    assert sorted(texts(training) + texts(validation)) == sorted(texts(everything))


def test_the_parts_of_a_document_stay_in_one_set(tmp_path):
    rows = [{"text": letter * 60} for letter in "abcdefgh"]
    source = write(tmp_path / "texts.jsonl", rows)
    training, validation = read(source, max_length=16, on_long="split", eval_fraction=0.25)
    sides = [{text[0] for text in texts(part)} for part in (training, validation)]
    assert len(sides[0]) == 6 and len(sides[1]) == 2 and not sides[0] & sides[1]


def prompts_of(rows, tmp_path, fraction, **data):
    """The (prompt, answer) of both sets; a prompt is one capital letter or several."""
    file = write(tmp_path / "rows.jsonl", [{"prompt": p, "completion": c} for p, c in rows])
    data = {"format": "prompt_completion", "template": "none", "eval_fraction": fraction, **data}
    return [
        [(one.rstrip("0123456789</s>"), one) for one in texts(part)] for part in read(file, **data)
    ]


def test_answers_to_one_prompt_stay_in_one_set(tmp_path):
    rows = [("AB" + "CDEFGHIJ"[n % 8] * (1 + n // 8), str(k)) for n in range(100) for k in range(4)]
    training, validation = prompts_of(rows[::-1], tmp_path, 0.02)
    assert len(validation) == 8 and len(training) == 392  # 2 % of the rows: two prompts
    assert len({prompt for prompt, _ in validation}) == 2
    assert not {prompt for prompt, _ in validation} & {prompt for prompt, _ in training}
    _, validation = prompts_of(rows[:12], tmp_path, 0.1)  # one row, and each prompt has four
    assert len(validation) == 4 and len({prompt for prompt, _ in validation}) == 1


@pytest.mark.parametrize("prompt", ["AB", "A{}"])
def test_rows_with_different_prompts_or_one_instruction_are_split_as_ever(prompt, tmp_path):
    rows = [(prompt.format("BCDEFGHIJK"[n]), str(n)) for n in range(10)]
    _, validation = prompts_of(rows, tmp_path, 0.3)
    held_out = np.sort(np.random.default_rng(3).permutation(10)[:3])
    assert [text for _, text in validation] == [f"{''.join(rows[n])}</s>" for n in held_out]


def test_an_instruction_of_many_rows_is_no_prompt_with_several_answers(tmp_path):
    rows = [("AB" if n < 65 else "CD", str(n)) for n in range(100)]
    training, validation = prompts_of(rows, tmp_path, 0.4)
    assert len(validation) == 40 and {prompt for prompt, _ in validation} >= {"AB"}
    assert "AB" in {prompt for prompt, _ in training}


def test_a_prompt_of_several_sources_is_in_one_set(tmp_path):
    """Also where sources overlap in part, and where one is wholly in the other."""
    names = [f"{a}{b}" for a in "ABCDEFGH" for b in "ABCDEFGH"]
    files = [
        write(
            tmp_path / f"{which}.jsonl",
            [{"prompt": prompt, "completion": f"{which}{n}"} for n, prompt in enumerate(prompts)],
        )
        for which, prompts in enumerate([names[:40], names[20:], names[5:15]])
    ]
    options = {"format": "prompt_completion", "template": "none", "eval_fraction": 0.2}
    training, validation = read(files, **options)
    prompts = [{text[:2] for text in texts(part)} for part in (training, validation)]
    assert prompts[0] | prompts[1] == set(names) and not prompts[0] & prompts[1]
    assert [report.examples for report in validation.reports][:2] == [8, 9]
    assert len(training.examples) + len(validation.examples) == 40 + 44 + 10
    again = read(files, **options)[1]
    assert again.examples.hashes.tolist() == validation.examples.hashes.tolist()
    assert shared_rows(training.examples, validation.examples).prompts == 0


def test_a_source_that_an_earlier_one_sets_aside_is_refused(tmp_path):
    rows = [{"prompt": f"Q{letter}", "completion": "1"} for letter in "ABCDEFGHIJ"]
    first = write(tmp_path / "first.jsonl", rows)
    options = {"format": "prompt_completion", "template": "none", "eval_fraction": 0.1}
    asked = texts(read(first, **options)[1])[0][:2]
    answers = [{"prompt": asked, "completion": str(n)} for n in range(3)]
    second = write(tmp_path / "second.jsonl", answers)
    with pytest.raises(UserError, match=f"{second}.*name it first in data.train"):
        read([first, second], **options)
    training, validation = read([second, first], **options)
    assert len(training.examples) + len(validation.examples) == 13


@pytest.mark.parametrize(
    "data",
    [
        {"format": "text"},
        {"format": "prompt_completion", "template": "none", "loss_on": "all"},
        {"format": "prompt_completion", "template": "none"},  # one instruction of all rows
        {"format": "prompt_completion", "template": "none", "weight_column": "importance"},
    ],
)
def test_equal_texts_stay_in_one_set(data, tmp_path):
    rows = [("ABC", letter) for letter in "abcdefghijklmnopqrst"] * 4
    file = write(
        tmp_path / "rows.jsonl",
        [
            {"text": f"{p}{c}"}
            if data["format"] == "text"
            else {"prompt": p, "completion": c, "importance": 1 + n}
            for n, (p, c) in enumerate(rows)
        ],
    )
    training, validation = (
        {text[3] for text in texts(part)} for part in read(file, eval_fraction=0.2, **data)
    )
    assert len(validation) == 4 and len(training) == 16 and not training & validation


def test_what_a_validation_set_shares_with_training_is_counted(tmp_path):
    options = {"format": "prompt_completion", "template": "none"}
    trained = [("QA", "1"), ("QA", "2"), ("QB", "1"), *(("QI", str(n)) for n in range(70))]
    judged = [("QA", "1"), ("QA", "3"), ("QC", "1"), ("QI", "7"), ("QI", "99")]
    sets = [
        read(write(tmp_path / name, [{"prompt": p, "completion": c} for p, c in rows]), **options)
        for name, rows in (("train.jsonl", trained), ("eval.jsonl", judged))
    ]
    shared = shared_rows(sets[0][0].examples, sets[1][0].examples)
    assert (shared.rows, shared.prompts, shared.texts) == (5, 3, 2)  # QI is an instruction
    assert "3 of 5 validation examples" in str(shared)


def test_one_source_in_a_list_is_that_source(sources):
    listed, _ = read([sources["chat"]], template="chatml")
    alone, _ = read(sources["chat"], template="chatml")
    assert listed.examples.hashes.tolist() == alone.examples.hashes.tolist()
    data = config(sources["chat"], template="chatml").data
    prepared = prepare(data, sources["chat"], tokenizer("byte"))
    assert np.array_equal(prepared.examples.hashes, alone.examples.hashes)


def test_a_mask_is_part_of_an_example(sources):
    answers, _ = read(sources["chat"], template="chatml")
    everything, _ = read(sources["chat"], template="chatml", loss_on="all")
    assert answers.examples.hashes[0] != everything.examples.hashes[0]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "data.train: list should have at least 1 item"),
        ([{"path": "a", "weight": 1}, {"path": "b"}], "give every source one, or none"),
        ([{"path": "a", "weight": 0}], r"data.train\[0\].weight=0: must be greater"),
        ([{"path": "a", "wieght": 1}], r"unknown key data.train\[0\].wieght \(did you mean weight"),
        ([{"path": "a", "format": "cvs"}], r"data.train\[0\].format=cvs"),
        ([{"split": "train"}], r"data.train\[0\].path is required"),
        ([3], r"data.train\[0\]=3"),
    ],
)
def test_mistakes_in_a_list_are_named_by_their_place(train, message):
    with pytest.raises(UserError, match=f"(?i){message}"):
        config(train)


def test_a_config_with_sources_is_written_and_read_back(sources):
    import yaml

    settings = config(several(sources, chat=1, table=2, text=1))
    assert build(yaml.safe_load(settings.to_yaml()), "again") == settings
