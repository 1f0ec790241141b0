"""Data on this machine is measured, so that packed rows, epochs and shares become exact numbers."""

import json
import math
from pathlib import Path

import pytest
import yaml

from intel_ft.assets import resolve
from intel_ft.config import build
from intel_ft.data.prepare import prepare
from intel_ft.models.tokenizer import load_tokenizer
from intel_ft.recipes.importer import translate

MODEL = "tiny-python-llama"
ROWS = 40


@pytest.fixture
def translated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def translated(rows, values):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(text)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
        return translate(tmp_path / "config.yaml")

    return translated


def alpaca(with_input=False):
    return [
        {
            "instruction": f"Say {n}.",
            "input": "x" if with_input else "",
            "output": f"{n} " * (n + 1),
        }
        for n in range(ROWS)
    ]


AXOLOTL = {
    "base_model": MODEL,
    "adapter": "lora",
    "lora_target_linear": True,
    "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
    "sequence_len": 256,
    "micro_batch_size": 2,
    "num_epochs": 2,
    "learning_rate": 1e-4,
}


def tokens_of(config) -> int:
    prepared = prepare(config.data, config.data.train, load_tokenizer(config.model))
    assert len(prepared.examples) == ROWS
    return len(prepared.examples.tokens)


def test_a_packed_batch_becomes_its_examples(translated) -> None:
    found = translated(
        alpaca(), AXOLOTL | {"sample_packing": True, "gradient_accumulation_steps": 1}
    )
    config = found.checked()
    mean = tokens_of(config) / ROWS
    assert config.train.global_batch_size == round(2 * 256 / mean) > 2
    assert any(f"{mean:.0f} tokens each" in text for text in found.mapped)
    assert not any("sample_packing" in text for text in found.not_carried_over)


def test_epochs_become_steps(translated) -> None:
    shares = {"evals_per_epoch": 2, "saves_per_epoch": 4, "warmup_steps": 4, "val_set_size": 0.25}
    found = translated(alpaca(), AXOLOTL | shares)
    train = found.checked().train
    epoch = math.ceil(ROWS * 0.75 / 2)  # 30 examples are trained on, two a step
    assert train.eval_steps == math.ceil(epoch / 2)
    assert train.save_steps == math.ceil(epoch / 4)
    assert train.warmup_ratio == pytest.approx(4 / (2 * epoch), abs=1e-6)
    assert not any(key in text for key in shares for text in found.not_carried_over)
    values = {"model_name_or_path": MODEL, "stage": "sft", "dataset": "rows", "dataset_dir": "."}
    Path("dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    values |= {"save_strategy": "epoch", "per_device_train_batch_size": 4, "save_total_limit": 1}
    assert translated(alpaca(), values).checked().train.save_steps == ROWS // 4


def test_a_number_of_validation_examples_becomes_a_share(translated) -> None:
    found = translated(alpaca(), AXOLOTL | {"val_set_size": 10, "saves_per_epoch": 1})
    assert found.checked().data.eval_fraction == 0.25
    assert found.checked().train.save_steps == 15
    found = translated(alpaca(), AXOLOTL | {"val_set_size": ROWS})
    assert any("val_set_size" in text for text in found.not_carried_over)


@pytest.mark.parametrize("with_input", [False, True])
def test_llama_factorys_join_is_a_gap_only_where_there_is_an_input(translated, with_input) -> None:
    Path("dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    values = {"model_name_or_path": MODEL, "stage": "sft", "dataset": "rows", "dataset_dir": "."}
    found = translated(alpaca(with_input), values | {"template": "alpaca"})
    assert any("one line break" in text for text in found.not_carried_over) == with_input
    assert found.checked().data.format == "alpaca"


@pytest.mark.parametrize(
    ("row", "loss_on", "template"),
    [
        ({"prompt": "Say it: ", "completion": "it"}, "completion", "none"),
        ({"text": "All of it."}, "all", "auto"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                ]
            },
            "all",
            "auto",
        ),
        (
            {
                "prompt": [{"role": "user", "content": "a"}],
                "completion": [{"role": "assistant", "content": "b"}],
            },
            "completion",
            "auto",
        ),
    ],
)
def test_trls_loss_and_joining_follow_from_the_data(translated, row, loss_on, template) -> None:
    values = {"model_name_or_path": MODEL, "dataset_name": "rows.jsonl", "output_dir": "out"}
    found = translated([row] * 4, values)
    data = found.checked().data
    assert (data.loss_on, data.template) == (loss_on, template)
    assert not any("completion_only_loss" in text for text in found.not_carried_over)
    assert build(yaml.safe_load(found.to_yaml()), "written").data == data


def test_nothing_is_fetched_to_measure(translated, monkeypatch) -> None:
    def never(*_):
        raise AssertionError("read")

    monkeypatch.setattr("intel_ft.data.prepare.prepare", never)
    values = AXOLOTL | {"sample_packing": True, "base_model": "org/model"}
    assert translated(alpaca(), values).measured is None
    values = AXOLOTL | {"datasets": [{"path": "org/set", "type": "alpaca"}]}
    assert translated(alpaca(), values).measured is None
    assert resolve(MODEL) != MODEL
