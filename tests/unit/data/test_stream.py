"""A source that is read while it is trained on: its buffers, their plan, and what is refused."""

import json
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
from support.agent_templates import family
from support.data_tokenizers import tokenizer

from intel_ft.batching.plan import Plan
from intel_ft.batching.stream_plan import plan_of_stream
from intel_ft.config import build
from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare
from intel_ft.data.stream import Stream
from intel_ft.errors import UserError

ROWS = [{"prompt": f"q{n}", "completion": "x" * (n % 5 + 1)} for n in range(10)]
LONG = [{"prompt": "q" * 50, "completion": "x"}, *ROWS]


def write(file, rows=ROWS):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def stream(source, **settings):
    values = {"template": "none", "streaming": True, "buffer": 4, **settings}
    return Stream(DataConfig(train=str(source), **values), str(source), tokenizer("byte"))


def held(one):
    return [one[place][0].tolist() for place in range(len(one))]


def test_buffers_are_the_rows_in_their_order_again_and_again(tmp_path):
    source = write(tmp_path / "rows.jsonl")
    whole = prepare(DataConfig(train=source, template="none"), source, tokenizer("byte")).examples
    expected = [whole[place % 10][0].tolist() for place in range(40)]
    one = stream(source)
    for number in (0, 1, 2, 2, 7, 3, 0, 4):
        one.move_to(number)
        assert held(one) == expected[4 * number : 4 * number + 4], number
        assert one.lengths.tolist() == [len(tokens) for tokens in held(one)]


def test_every_kind_of_source_is_streamed(tmp_path):
    write(tmp_path / "rows.jsonl")
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train-1.jsonl", ROWS[:3])
    write(tmp_path / "folder" / "train-2.jsonl", ROWS[3:])
    write(tmp_path / "folder" / "test.jsonl", ROWS[:1])
    expected = held(stream(tmp_path / "rows.jsonl"))
    for name in ("rows.parquet", "folder", "folder/train-*.jsonl"):
        assert held(stream(tmp_path / name)) == expected, name
    assert held(stream(f"file://{tmp_path}/rows.jsonl")) == expected
    (tmp_path / "texts.txt").write_text("a b\n\n\n\nc\n\nd\n\n \n\ne\n")
    texts = [tokenizer("byte").decode(ids) for ids in held(stream(tmp_path / "texts.txt"))]
    assert [text.removeprefix("<s>") for text in texts] == [f"{t}</s>" for t in ("a b", *"cde")]


def test_files_at_a_url_are_streamed(tmp_path):
    system = fsspec.filesystem("memory")
    rows = Path(write(tmp_path / "rows.jsonl")).read_bytes().splitlines(keepends=True)
    system.pipe("/streamed/a.jsonl", b"".join(rows[:3]))
    system.pipe("/streamed/b.jsonl", b"".join(rows[3:]))
    try:
        found = held(stream("memory://streamed/*.jsonl"))
    finally:
        system.rm("/streamed", recursive=True)
    assert found == held(stream(tmp_path / "rows.jsonl"))


def test_a_step_is_the_same_walked_to_or_resumed_at_and_in_any_world(tmp_path):
    source = write(tmp_path / "rows.jsonl")

    def planned():
        one = stream(source)
        plan = Plan(one.lengths, one.supervised_counts, 2, 64, seed=3)
        return one, plan_of_stream(plan, one, keeps_together=False)

    walked, plan = planned()
    steps = []
    for step in plan.steps(0, 9):
        steps.append([walked[int(place)][0].tolist() for place in step.examples])
        assert step.plan.lengths[step.examples].tolist() == [len(ids) for ids in steps[-1]]
        counts = [walked[int(place)][1].sum() for place in step.examples]
        assert step.supervised_tokens == sum(counts)
        assert sorted(np.concatenate(step.shares(4))) == sorted(step.examples)
    for index in (7, 4, 8):
        other, plan = planned()
        step = plan.step(index)
        assert step.index == index
        assert [other[int(place)][0].tolist() for place in step.examples] == steps[index]
    assert sorted(steps[0] + steps[1]) == sorted(held(stream(source)))


@pytest.mark.parametrize(
    ("rows", "settings", "fact"),
    [
        (ROWS, {"split": "train[:5]"}, "only a whole split can be streamed"),
        ([{**ROWS[0], "completion": ""}, *ROWS], {}, "row 1: completion is empty"),
        (LONG, {"max_length": 16, "on_long": "truncate"}, "1 row without an example"),
        ([], {}, "is empty"),
    ],
)
def test_rows_that_cannot_be_streamed_are_named(tmp_path, rows, settings, fact):
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as caught:
        stream(source, **settings)
    assert fact in str(caught.value) and source in str(caught.value)


def test_a_row_of_which_the_template_needs_several_examples_is_refused(tmp_path):
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]
    source = write(tmp_path / "rows.jsonl", [{"messages": turns}] * 4)
    data = {"streaming": True, "buffer": 4, "train": source}
    with pytest.raises(UserError, match=r"set data\.earlier_answers to context"):
        Stream(DataConfig(**data), source, family("qwen 3"))
    one = Stream(DataConfig(**data, earlier_answers="context"), source, family("qwen 3"))
    assert len(one) == 4


def test_a_bad_row_of_a_later_buffer_has_its_number(tmp_path):
    source = write(tmp_path / "rows.jsonl", [*ROWS[:5], {"prompt": "q", "completion": ""}, *ROWS])
    one = stream(source)
    with pytest.raises(UserError, match="row 6: completion is empty"):
        one.move_to(1)


def test_files_that_cannot_be_streamed_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n")
    with pytest.raises(UserError, match="CSV cannot be streamed"):
        stream(tmp_path / "rows.csv")
    with pytest.raises(UserError, match="name files of one type"):
        stream("memory://bucket/folder")


@pytest.mark.parametrize(
    ("data", "train", "fact"),
    [
        ({}, {}, "data.streaming needs train.max_steps"),
        ({"train": ["a", "b"]}, {"max_steps": 1}, "reads one source in full"),
        ({"eval_fraction": 0.1}, {"max_steps": 1}, "set data.eval"),
        ({"buffer": 100}, {"max_steps": 1}, "must be a multiple of train.global_batch_size (16)"),
        ({"on_bad": "drop"}, {"max_steps": 1}, "each row gives one example"),
        ({"on_long": "split"}, {"max_steps": 1}, "each row gives one example"),
    ],
)
def test_settings_that_do_not_fit_a_stream_are_refused(data, train, fact):
    values = {"train": "a", "streaming": True, **data}
    sections = {"model": {"name_or_path": "m"}, "data": values, "train": train}
    with pytest.raises(UserError) as caught:
        build({**sections, "output": {"directory": "o"}}, "test")
    assert fact in str(caught.value)


def test_answers_of_a_buffer_to_one_prompt_are_kept_together(tmp_path) -> None:
    rows = [{"prompt": f"question {n // 2}", "completion": "x" * (n % 7 + 1)} for n in range(24)]
    one = stream(write(tmp_path / "rows.jsonl", rows), buffer=8)
    plan = Plan(one.lengths, one.supervised_counts, 8, 64, seed=3)
    for keeps_together in (True, False):
        streamed = plan_of_stream(plan, one, keeps_together=keeps_together)
        kept = []
        for step in streamed.steps(0, 3):
            read = [one[int(place)] for place in step.examples]
            prompts = [tokens[: mask.argmax()].tolist() for tokens, mask in read]
            kept += [a == b for a, b in zip(prompts[::2], prompts[1::2], strict=True)]
        assert all(kept) == keeps_together
