"""Foreign configs: right values, every key in exactly one list, and nothing ever run."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import peft
import pytest
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from intel_ft.config import MethodConfig
from intel_ft.errors import UserError
from intel_ft.recipes.translate import translate
from intel_ft.recipes.translation import flatten

FOREIGN = Path(__file__).parent / "foreign"
METHODS = get_args(MethodConfig.model_fields["name"].annotation)


def written(folder, values, name="config.yaml"):
    path = folder / name
    path.write_text(json.dumps(values) if name.endswith("json") else yaml.safe_dump(values))
    return path


def lists(translation):
    facts = translation.facts()
    return [facts[key] for key in ("mapped", "no_meaning_here", "not_carried_over")]


def test_the_write_ups_table_of_training_arguments() -> None:
    """2e-4 constant, clipping at 0.3, r=64 and alpha=16: what the recipe cli-assistant has, too."""
    config = translate(FOREIGN / "training-arguments.json").checked()
    assert (config.method.r, config.method.alpha, config.method.dropout) == (64, 16, 0.1)
    assert config.method.name == ("qlora" if "qlora" in METHODS else "lora")
    train = config.train
    assert (train.learning_rate, train.scheduler, train.warmup_ratio) == (2e-4, "constant", 0.03)
    assert (train.max_grad_norm, train.weight_decay, train.max_steps) == (0.3, 0.001, None)
    assert (train.save_steps, train.logging_steps, train.epochs) == (25, 25, 1)
    assert (train.global_batch_size, train.optimizer) == (4, "paged_adamw_32bit")
    assert train.report_to == ["tensorboard"]


def test_axolotl() -> None:
    config = translate(FOREIGN / "axolotl-lora-8bit.yaml", devices=2).checked()
    assert config.model.base_dtype == "int8"
    assert config.train.global_batch_size == 16
    assert (config.data.format, config.data.template, config.data.on_long) == (
        "alpaca",
        "alpaca",
        "drop",
    )
    assert (config.data.eval_fraction, config.train.early_stopping) == (0.1, 2)
    assert config.method.target_modules == "all-linear"
    chat = translate(FOREIGN / "axolotl-qlora-chat.yaml")
    config = chat.checked()
    assert (config.train.warmup_ratio, config.train.learning_rate) == (0.1, 1e-4)  # 20 of 200
    assert (config.data.template, config.data.on_long) == ("chatml", "truncate")
    assert (config.data.eval, config.data.eval_split) == ("rows.jsonl", "train")
    assert any("CutCrossEntropyPlugin" in text for text in chat.impossible)
    full = translate(FOREIGN / "axolotl-full.yml")
    assert full.checked().data.loss_on == "all"
    assert any("more.jsonl" in text for text in full.impossible)
    assert any("rex" in text for text in full.impossible)


def test_llama_factory_reads_dataset_info(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    info = {
        "mine": {"file_name": "mine.json"},
        "hub": {
            "hf_hub_url": "org/set",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "system": "sys"},
            "tags": {"role_tag": "role", "content_tag": "text"},
        },
    }
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(info))
    values = {"model_name_or_path": "org/model", "stage": "sft", "output_dir": "out"}
    found = translate(written(tmp_path, values | {"dataset": "mine"}))
    assert found.checked().data.train == "data/mine.json"
    assert found.checked().train.learning_rate == 5e-5  # the trainer's own default
    assert found.checked().method.alpha == 2 * found.checked().method.r == 16
    found = translate(written(tmp_path, values | {"dataset": "hub"}))
    assert found.checked().data.train == "org/set"
    differing = [text for text in found.impossible if text.startswith("dataset hub")]
    assert [text.split(": ")[1] for text in differing] == ["text (here content)", "system column"]
    found = translate(written(tmp_path, values | {"dataset": "nowhere"}))
    assert any("check data.train" in text for text in found.impossible)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"base_model": "x", "rl": "dpo"}, "rl: dpo"),
        ({"base_model": "x", "adapter": "llama-adapter"}, "llama-adapter"),
        ({"model_name_or_path": "x", "stage": "ppo"}, "stage: ppo"),
        ({"model_name_or_path": "x", "finetuning_type": "freeze"}, "freeze"),
        ({"output_dir": "x", "beta": 0.1}, "beta"),
        ({"hello": "world"}, "of no trainer"),
        ({"model": {"name_or_path": "x"}}, "of intel-ft already"),
        ([1, 2], "expected keys"),
        ({}, "expected keys"),
    ],
)
def test_what_is_refused(values, part, tmp_path) -> None:
    with pytest.raises(UserError, match=part):
        translate(written(tmp_path, values))


def test_unknown_keys_and_values_out_of_bounds_are_listed(tmp_path) -> None:
    values = {"base_model": "x", "adapter": "lora", "lora_r": 5000, "foo": {"bar": [1]}, "baz": 0}
    found = translate(written(tmp_path, values))
    assert {text.split(":")[0] for text in found.impossible} >= {"foo.bar", "baz", "method.r"}
    assert found.checked().method.r == 16
    assert "fill it in" in found.impossible[-1] and found.checked().data.train == "CHANGE-ME"
    assert "# - foo.bar: [1]: unknown key of Axolotl" in found.to_yaml()


def test_a_value_cannot_break_out_of_the_comment(tmp_path) -> None:
    evil = "x\ntrain:\n  epochs: 99\u2028\x1b[2J"
    found = translate(written(tmp_path, {"base_model": "x", f"k{evil}": evil}))
    values = yaml.safe_load(found.to_yaml())
    assert values["train"]["epochs"] == 1.0
    assert all(line.isprintable() for line in found.lines() if line and line[0] != "\n")


def test_code_and_bombs_are_not_run(tmp_path) -> None:
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="code never is"):
        translate(script)
    path = tmp_path / "a.yaml"
    path.write_text("base_model: !!python/object/apply:os.system ['touch ran']")
    with pytest.raises(UserError, match="cannot be parsed"):
        translate(path)
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}, z: *a{n - 1}}}" for n in range(1, 40)]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="more than 5000"):
        translate(path)
    path.write_text("base_model: &a [*a]")
    with pytest.raises(UserError, match="more than 5000"):
        translate(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        translate(path)
    with pytest.raises(UserError, match="no such file"):
        translate(tmp_path / "absent.yaml")


KEYS = [
    *("lora_r", "optimizer", "learning_rate", "warmup_steps", "max_steps", "datasets", "seed"),
    *("report_to", "optim", "save_steps", "eval_strategy", "dtype", "lora_target", "template"),
    *("dataset", "cutoff_len", "packing", "load_in_8bit", "chat_template", "val_set_size"),
    "dataset_text_field",
]
keys = st.one_of(st.sampled_from(KEYS), st.text(min_size=1, max_size=8))
numbers = st.one_of(st.integers(-5, 5000), st.floats(allow_nan=False))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("first", ["base_model", "model_name_or_path", "output_dir"])
@settings(max_examples=60)
@given(found=st.dictionaries(keys, values, max_size=8))
def test_no_key_is_lost_whatever_the_file_holds(first, found, tmp_path_factory) -> None:
    whole = found | {first: "name"} | ({"stage": "sft"} if first == "model_name_or_path" else {})
    path = tmp_path_factory.mktemp("any") / "config.json"
    path.write_text(json.dumps(whole))
    try:
        translation = translate(path)
    except UserError as error:  # hypothesis finds words such as rl and beta by itself
        assert "only supervised fine-tuning" in str(error) or "known here are" in str(error)
        return
    assert not translation.left
    told = "\n".join(text for texts in lists(translation) for text in texts)
    for key in flatten(json.loads(json.dumps(whole))):
        assert key in told or key in translation.off or key.split(".")[-1] in told
    yaml.safe_load(translation.to_yaml())


def test_all_of_transformers_and_peft_is_known(tmp_path) -> None:
    """No documented key comes out as unknown."""
    odd = {"max_steps": 5, "report_to": "tensorboard", "optim": "sgd", "bf16": True}
    odd |= {"lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "eval_strategy": "steps"}
    arguments = {
        field.name: odd.get(field.name, 3)
        for field in dataclasses.fields(transformers.TrainingArguments)
    }
    lora = {field.name: 3 for field in dataclasses.fields(peft.LoraConfig)}
    lora["target_modules"] = ["q_proj"]
    values = {"args": arguments, "peft_config": lora}
    found = translate(written(tmp_path, values, "config.json"))
    assert [text for text in found.impossible if "unknown key" in text] == []
