"""A plan reads the rows of the steps that it samples, and its figures are those of all rows."""

import json

import numpy as np
import pytest

from intel_ft import assets
from intel_ft.batching.plan import Plan
from intel_ft.config import Config, build
from intel_ft.planner import lengths
from intel_ft.planner.lengths import ExampleLengths, example_lengths
from intel_ft.training.decide import sampled_steps

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
