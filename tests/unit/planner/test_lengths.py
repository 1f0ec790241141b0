"""A plan reads the rows of the steps that it samples, and its figures are those of all rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from intel_ft import assets
from intel_ft.batching.plan import Plan
from intel_ft.config import Config, build, changed
from intel_ft.planner import lengths
from intel_ft.planner.lengths import ExampleLengths, example_lengths
from intel_ft.planner.workload import planned_run, sampled_rows
from intel_ft.training.decide import sampled_steps
from intel_ft.training.model_sizes import count_model

ROWS = assets.resolve("docstring-to-python/heldout.jsonl")


@pytest.fixture(autouse=True)
def few(monkeypatch) -> None:
    monkeypatch.setattr(lengths, "_FEW", 16)


def config(path: object = ROWS, **data: object) -> Config:
    return build(
        {
            "model": {"name_or_path": "tiny-python-llama"},
            "data": {"train": str(path)} | data,
            "train": {"max_steps": 6, "global_batch_size": 4},
            "output": {"directory": "out"},
        },
        "test",
    )


def steps(found: ExampleLengths) -> list[list[int]]:
    plan = Plan(found.lengths, found.supervised, 4, 2048, seed=42)
    return [found.lengths[step.examples].tolist() for step in sampled_steps(plan, 6)]


def test_the_sampled_steps_are_those_of_the_run() -> None:
    settings = config()
    assert settings.train.seed == 42
    some, every = (example_lengths(settings, None, whole=whole) for whole in (False, True))
    assert steps(some) == steps(every)
    assert len(some.lengths) == len(every.lengths)
    assert "were read" in some.source and "were read" not in every.source
    assert some.examples is not None and every.examples is not None
    (step,) = sampled_steps(Plan(some.lengths, some.supervised, 4, 2048, seed=42), 1)
    for index in step.examples.tolist():
        assert some.examples[index][0].tolist() == every.examples[index][0].tolist()


def test_examples_that_stand_for_others_share_nothing_with_them() -> None:
    """A sample repeats its examples, which are not answers to one prompt for that."""
    settings = changed(changed(config(), "train.global_batch_size=16"), "train.max_steps=3")
    model = count_model(settings)
    computed = []
    for whole in (False, True):
        run = planned_run(settings, model, example_lengths(settings, None, whole=whole))
        rows = [row for ranks in sampled_rows(run, 1) for share in ranks for row in share]
        computed.append(sum(row.tokens for row in rows) / sum(row.read for row in rows))
    assert computed[0] == pytest.approx(computed[1], abs=0.02)


def test_a_validation_set_is_counted_from_a_part_of_it() -> None:
    of_file, every = (example_lengths(config(eval=ROWS), None, whole=w) for w in (False, True))
    assert of_file.validation_tokens == pytest.approx(every.validation_tokens, rel=0.3)
    fraction = example_lengths(config(eval_fraction=0.25), None)
    assert len(fraction.lengths) == len(every.lengths) - round(0.25 * len(every.lengths))
    assert fraction.validation_tokens == pytest.approx(every.validation_tokens / 4, rel=0.4)


def test_rows_that_are_dropped_are_counted_in_proportion(tmp_path) -> None:
    """And a row that is wrong is named by its number in the file."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": "b " * (600 if i % 2 else 3)} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = example_lengths(config(path, max_length=64, on_long="drop"), None)
    assert found.lengths.max() < 64
    assert len(found.lengths) == pytest.approx(100, abs=40)
    assert "about" in found.source
    (wrong,) = np.flatnonzero(np.arange(200) == lengths._spread(200)[5])
    rows[wrong] = {"prompt": "a"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert f"{path} row {wrong + 1}" in example_lengths(config(path, max_length=2048), None).source


@pytest.mark.parametrize("data", [{"streaming": True, "buffer": 20}, {"train": [ROWS, ROWS]}])
def test_streams_and_mixtures_are_read_as_a_run_reads_them(data) -> None:
    assert "were read" not in example_lengths(config(**data), None).source


@pytest.fixture
def no_tokenizer(tmp_path):
    """A model folder with a config alone, such as those of docs/shapes."""
    folder = tmp_path / "shape"
    folder.mkdir()
    text = (Path(str(assets.resolve("tiny-python-llama"))) / "config.json").read_text()
    (folder / "config.json").write_text(text)
    return str(folder)


def without(settings: Config, folder: str) -> Config:
    return settings.model_copy(
        update={"model": settings.model.model_copy(update={"name_or_path": folder})}
    )


def test_without_a_tokenizer_tokens_are_estimated_and_examples_counted(no_tokenizer) -> None:
    settings = config(eval_fraction=0.25)
    real = example_lengths(settings, None, whole=True)
    found = example_lengths(without(settings, no_tokenizer), None)
    assert len(found.lengths) == len(real.lengths)
    assert found.counted
    # The shipped tokenizer is one for Python; the estimate is for those of large models.
    assert found.lengths.mean() == pytest.approx(real.lengths.mean(), rel=0.2)
    assert found.supervised.mean() == pytest.approx(real.supervised.mean(), rel=0.2)
    assert found.validation_tokens == pytest.approx(real.validation_tokens, rel=0.3)
    assert "characters per token" in found.source and no_tokenizer in found.source


def test_estimates_keep_to_what_the_config_does_with_long_examples(tmp_path, no_tokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "word " * (100 if i % 2 else 10)} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def estimated(on_long: str) -> list[int]:
        settings = config(path, max_length=64, on_long=on_long)
        return sorted(example_lengths(without(settings, no_tokenizer), None).lengths.tolist())

    assert len(estimated("drop")) == 100
    assert estimated("truncate") == [12] * 100 + [64] * 100
    assert estimated("split") == [12] * 100 + [51] * 200
    assert estimated("error") == estimated("truncate")


@pytest.mark.parametrize("kind", ["pairs", "judged", "messages"])
def test_estimates_read_every_kind_of_data(tmp_path, no_tokenizer, kind) -> None:
    row = {
        "pairs": {"prompt": "Why?", "chosen": "Because of it.", "rejected": "No idea."},
        "judged": {"prompt": "Why?", "completion": "Because."},
        "messages": {
            "messages": [
                {"role": "user", "content": "Which day?"},
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "day"}}]},
                {"role": "tool", "content": "Monday"},
                {"role": "assistant", "content": "Monday."},
            ]
        },
    }[kind]
    rows = [row | ({"label": i % 2 == 0} if kind == "judged" else {}) for i in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(path)
    if kind != "messages":
        loss = "dpo" if kind == "pairs" else "kto"
        method = build(
            {**settings.model_dump(), "method": {"name": "preference", "loss": loss}}, "test"
        ).method
        settings = settings.model_copy(update={"method": method})
    found = example_lengths(without(settings, no_tokenizer), None)
    assert found.counted, found.source
    assert len(found.lengths) == 6
    assert (found.supervised < found.lengths).all() and (found.supervised > 0).all()


def test_data_that_cannot_be_read_is_not_counted(no_tokenizer) -> None:
    settings = config("not-there.jsonl")
    for one in (settings, without(settings, no_tokenizer)):
        found = example_lengths(one, None)
        assert not found.counted
        assert "not-there.jsonl" in found.source and "unknown number" in found.source


def test_all_rows_are_read_where_prompts_have_several_answers(tmp_path) -> None:
    """The steps then follow from all prompts, not from the number of examples alone."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"question {i // 4}", "completion": "b " * (i % 9 + 1)} for i in range(400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "were read" not in example_lengths(config(path), None).source
    settings = config(path)
    train = settings.train.model_copy(update={"keep_answers_together": False})
    random = settings.model_copy(update={"train": train})
    assert "were read" in example_lengths(random, None).source
