"""Configs of other trainers: correct values, every key in exactly one list, no code run."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import peft
import pytest
import transformers
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from intel_ft.config import load
from intel_ft.config_method import MethodConfig
from intel_ft.errors import UserError
from intel_ft.recipes.importer import translate
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


def translated(folder, /, **values):
    return translate(written(folder, values))


def trl(folder, /, **values):
    return translated(folder, output_dir="out", **values)


def axolotl(folder, /, **values):
    return translated(folder, base_model="org/model", **values)


def factory(folder, /, **values):
    return translated(folder, model_name_or_path="org/model", stage="sft", **values)


def has(texts, *parts):
    """Whether one of `texts` has all the parts."""
    return any(all(part in text for part in parts) for text in texts)


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


def test_the_recipe_of_the_write_up_differs_in_what_the_docs_say() -> None:
    translation = translate(FOREIGN / "training-arguments.json")
    recipe = load(FOREIGN.parents[3] / "configs/cli-assistant.yaml")
    differing = {
        key
        for name in ("method", "train")
        for key, value in getattr(recipe, name)
        if value != getattr(getattr(translation.checked(), name), key)
    }
    assert differing == {"target_modules", "optimizer", "activation_checkpointing"}
    assert has(translation.not_carried_over, "target_modules is not set")
    assert not has(translation.not_needed, "target_modules")


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
    assert any("CutCrossEntropyPlugin" in text for text in chat.not_needed)
    full = translate(FOREIGN / "axolotl-full.yml")
    assert full.checked().data.loss_on == "all"
    assert [one.path for one in full.checked().data.sources][1:] == ["more.jsonl"]
    assert any("rex" in text for text in full.not_carried_over)


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
    differing = [text for text in found.not_carried_over if text.startswith("dataset hub")]
    assert [text.removeprefix("dataset hub.").split(": ")[:2] for text in differing] == [
        ["tags.content_tag", "text"],
    ]
    assert found.checked().data.columns == {"system": "sys"}
    assert found.checked().data.format == "messages"
    found = translate(written(tmp_path, values | {"dataset": "nowhere"}))
    assert any("check data.train" in text for text in found.not_carried_over)


def registered(folder, /, **fields):
    """A translation with one dataset, of which dataset_info.json says `fields`."""
    (folder / "dataset_info.json").write_text(json.dumps({"mine": fields}))
    return factory(folder, dataset="mine", dataset_dir=str(folder))


def test_llama_factory_says_which_rows_of_a_dataset(tmp_path) -> None:
    found = registered(tmp_path, hf_hub_url="org/set", subset="en", split="test", num_samples=50)
    data = found.checked().data
    assert (data.train, data.split) == ("org/set:en", "test[:50]")
    assert has(found.mapped, "num_samples: 50", "at random")
    info = {"mine": {"file_name": "in/a.json"}, "held": {"hf_hub_url": "org/held", "split": "dev"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    both = {"dataset": "mine", "eval_dataset": "held", "dataset_dir": str(tmp_path)}
    data = factory(tmp_path, **both).checked().data
    assert (data.eval, data.split, data.eval_split) == ("org/held", "train", "dev")
    assert data.train == str(tmp_path / "in/a.json")
    data = factory(tmp_path, **both, max_samples=7).checked().data
    assert (data.split, data.eval_split) == ("train[:7]", "dev[:7]")
    # A split of the training data alone is not that of the evaluation's.
    both |= {"dataset": "held", "eval_dataset": "mine"}
    data = factory(tmp_path, **both).checked().data
    assert (data.split, data.eval_split) == ("dev", "train")
    data = (
        factory(tmp_path, dataset="org/a_set", dataset_dir="ONLINE", max_samples=9).checked().data
    )
    assert (data.train, data.split) == ("org/a_set", "train[:9]")


def test_no_field_of_dataset_info_is_lost(tmp_path) -> None:
    fields = {"folder": "a", "new_field": 1, "columns": {"other": "o"}}
    found = registered(tmp_path, file_name="a.json", subset="en", **fields)
    for key in ("folder", "new_field", "columns.other", "subset"):
        assert has(found.not_carried_over, f"dataset mine.{key}: "), key
    tags = {"user_tag": "user", "assistant_tag": "bot", "function_tag": "call"}
    found = registered(tmp_path, hf_hub_url="org/set", formatting="sharegpt", tags=tags)
    assert has(found.not_carried_over, "assistant_tag: bot: rename it to assistant")
    assert has(found.not_carried_over, "function_tag: call") and has(
        found.not_needed, "user_tag: user"
    )
    for key in ("script_url", "ms_hub_url"):
        found = registered(tmp_path, **{key: "there"})
        assert has(found.not_carried_over, f"{key}: there")
        assert found.checked().data.train == "CHANGE-ME"
    found = registered(tmp_path, hf_hub_url="org/set", ms_hub_url="there")
    assert found.checked().data.train == "org/set" and has(found.not_needed, "ms_hub_url: there")
    with pytest.raises(UserError, match="mine: ranking"):
        registered(tmp_path, file_name="a.json", ranking=True)
    for column in ("images", "videos", "kto_tag"):
        with pytest.raises(UserError, match=f"mine.columns.{column}: c: only"):
            registered(tmp_path, file_name="a.json", columns={column: "c"})


@pytest.mark.parametrize(
    "key", ["dataset_name", "max_length", "max_seq_length", "packing", "dataset_text_field"]
)
def test_trls_own_defaults_are_those_of_its_sft(key, tmp_path) -> None:
    train = trl(tmp_path, **{key: 512 if "length" in key else "text"}).checked().train
    assert (train.learning_rate, train.logging_steps) == (2e-5, 10)
    assert train.activation_checkpointing


def test_the_trainers_defaults_where_nothing_says_sft(tmp_path) -> None:
    for values in ({"peft_config": {"r": 8}}, {"args": {"seed": 3}}):
        train = trl(tmp_path, **values).checked().train
        assert (train.learning_rate, train.logging_steps) == (5e-5, 500)
        assert not train.activation_checkpointing
    assert trl(tmp_path, sft_config={"seed": 3}).checked().train.learning_rate == 2e-5


def test_a_packed_rows_batch_is_said_to_be_another(tmp_path) -> None:
    found = (
        trl(tmp_path, packing=True, max_length=777, per_device_train_batch_size=2),
        axolotl(tmp_path, sample_packing=True, sequence_len=777, micro_batch_size=2),
        factory(tmp_path, neat_packing=True, cutoff_len=777, per_device_train_batch_size=2),
    )
    for one in found:
        assert one.checked().train.global_batch_size == 2
        assert has(
            one.not_carried_over, "packing: true", "777 tokens", "train_tokens / train_examples"
        )
        assert not has(one.not_needed, "packing: true")
    assert not has(trl(tmp_path, packing=False).not_carried_over, "packed row")


def test_trl_evaluates_on_another_split(tmp_path) -> None:
    data = trl(tmp_path, dataset_name="a/b", eval_strategy="epoch").checked().data
    assert (data.eval, data.eval_split) == ("a/b", "test")
    values = {"dataset_name": "a/b", "dataset_config": "en", "dataset_test_split": "dev"}
    found = trl(tmp_path, **values, eval_strategy="steps")
    data = found.checked().data
    assert (data.eval, data.eval_split) == ("a/b:en", "dev")
    assert found.checked().train.eval_steps == 10  # SFTConfig's logging_steps
    for strategy in ("no", False):
        found = trl(tmp_path, **values, eval_strategy=strategy)
        assert found.checked().data.eval is None and "eval_strategy" in found.off
        assert has(found.not_needed, "dataset_test_split: dev")


def test_when_to_evaluate_and_save(tmp_path) -> None:
    held = {"val_size": 0.1, "logging_steps": 7}
    found = factory(tmp_path, **held, eval_strategy="epoch", eval_steps=30)
    assert found.checked().train.eval_steps is None
    assert has(found.mapped, "eval_strategy: epoch -> train.eval_steps: null")
    assert has(found.not_needed, "eval_steps: 30")
    steps = factory(tmp_path, **held, evaluation_strategy="steps", eval_steps=30)
    assert steps.checked().train.eval_steps == 30
    assert factory(tmp_path, **held, eval_strategy="steps").checked().train.eval_steps == 7
    assert has(factory(tmp_path, **held, eval_strategy="no").not_carried_over, "eval_strategy: no")
    assert has(factory(tmp_path, eval_strategy="steps").not_carried_over, "set data.eval")
    found = factory(tmp_path, save_strategy="no")
    assert has(found.not_carried_over, "save_strategy: no") and "save_strategy" not in found.off
    assert "save_steps" not in found.config["train"]  # 500 is for save_strategy: steps


@pytest.mark.parametrize(
    ("values", "loss"),
    [
        ({"completion_only_loss": True, "assistant_only_loss": False}, "completion"),
        ({"completion_only_loss": False, "assistant_only_loss": True}, "completion"),
        ({"assistant_only_loss": True}, "completion"),
        ({"completion_only_loss": False, "assistant_only_loss": False}, "all"),
        ({"completion_only_loss": False}, "all"),
        ({"dataset_text_field": "text"}, "all"),
    ],
)
def test_trls_loss_mask(values, loss, tmp_path) -> None:
    found = trl(tmp_path, **values)
    assert found.checked().data.loss_on == loss
    assert not has(found.not_carried_over, "completion_only_loss")


def test_trls_loss_mask_where_only_the_data_tells_it(tmp_path) -> None:
    for values in ({}, {"assistant_only_loss": False}, {"completion_only_loss": None}):
        found = trl(tmp_path, **values)
        assert found.checked().data.loss_on == "completion"
        assert has(
            found.not_carried_over, "completion_only_loss is not set", "all tokens of messages"
        )


def test_half_precision_is_the_devices_choice(tmp_path) -> None:
    for found in (
        trl(tmp_path, fp16=True, bf16=False),
        trl(tmp_path, dtype="float16"),
        trl(tmp_path, torch_dtype="torch.float16"),
        axolotl(tmp_path, fp16=True),
        factory(tmp_path, fp16=True),
    ):
        assert found.config["model"]["dtype"] == "auto"
        assert has(found.mapped, "model.dtype: auto", "float16 on a GPU without bf16")
    assert trl(tmp_path, dtype="bfloat16").checked().model.dtype == "bfloat16"
    for key in ("use_cpu", "no_cuda"):
        assert trl(tmp_path, **{key: True}).checked().backend.name == "cpu"
        assert trl(tmp_path, **{key: False}).checked().backend.name == "auto"


def test_paged_states_stay_paged(tmp_path) -> None:
    for name in ("paged_adamw", "paged_adamw_32bit", "paged_adamw_8bit"):
        assert trl(tmp_path, optim=name).checked().train.optimizer == "paged_adamw_32bit"
        assert axolotl(tmp_path, optimizer=name).checked().train.optimizer == "paged_adamw_32bit"
    assert trl(tmp_path, optim="adamw_8bit").checked().train.optimizer == "adamw_torch_fused"


def test_axolotl_splits_long_completions(tmp_path) -> None:
    dataset = {"path": "a.jsonl", "type": "completion"}
    found = axolotl(tmp_path, datasets=[dataset], excess_length_strategy="drop")
    assert found.checked().data.on_long == "split"
    found = axolotl(tmp_path, datasets=[{"path": "a.jsonl", "type": "alpaca"}])
    assert found.checked().data.on_long == "drop"


def test_axolotls_keys_of_a_chat(tmp_path) -> None:
    def chat(chat_template=None, /, **keys):
        dataset = {"path": "a.jsonl", "type": "chat_template"} | keys
        return axolotl(tmp_path, datasets=[dataset], chat_template=chat_template)

    assert not chat(roles_to_train=["assistant"], train_on_eos="turn").not_carried_over[:-1]
    for keys in (
        {"roles_to_train": ["assistant", "narrator"]},
        {"train_on_eos": "last"},
        {"roles": {"assistant": ["bot"]}},
    ):
        found = chat(**keys)
        assert has(found.not_carried_over, f"datasets[0].{next(iter(keys))}")
        assert "loss_on" not in found.config["data"]
    for name in ("llama3", "tokenizer_default_fallback_alpaca"):
        found = chat(name)
        assert found.checked().data.template == "auto"
        assert has(found.mapped, name, "if it has none", "chatml for messages")
    assert chat("llama3", chat_template="chatml").config["data"]["template"] == "chatml"


@pytest.mark.parametrize(
    ("steps", "ratio", "share", "listed"),
    [
        (20, 0.0, 0.1, False),
        (20, None, 0.1, False),
        (20, 0.5, 0.1, True),
        (0, 0.5, 0.5, False),
        (0, 0.0, 0.0, False),
        (None, 0.5, 0.5, False),
        (None, None, 0.0, False),
    ],
)
def test_which_warm_up_goes_first(steps, ratio, share, listed, tmp_path) -> None:
    found = trl(tmp_path, max_steps=200, warmup_steps=steps, warmup_ratio=ratio)
    assert found.checked().train.warmup_ratio == share
    assert has(found.not_carried_over, "warmup_ratio: 0.5") == listed
    ignored = {(20, 0.0): "warmup_ratio", (0, 0.5): "warmup_steps"}.get((steps, ratio))
    assert ignored is None or ignored in found.off


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"base_model": "x", "rl": "grpo"}, "rl: grpo"),
        ({"base_model": "x", "adapter": "llama-adapter"}, "llama-adapter"),
        ({"model_name_or_path": "x", "stage": "ppo"}, "stage: ppo"),
        ({"model_name_or_path": "x", "finetuning_type": "freeze"}, "freeze"),
        ({"output_dir": "x", "num_generations": 8}, "num_generations"),
        ({"hello": "world"}, "not a config of a supported trainer"),
        ({"model": {"name_or_path": "x"}}, "already a config of intel-ft"),
        ([1, 2], "expected keys with values"),
        ({}, "expected keys with values"),
    ],
)
def test_what_is_refused(values, part, tmp_path) -> None:
    with pytest.raises(UserError, match=part):
        translate(written(tmp_path, values))


def test_unknown_keys_and_values_out_of_bounds_are_listed(tmp_path) -> None:
    values = {"base_model": "x", "adapter": "lora", "lora_r": 5000, "foo": {"bar": [1]}, "baz": 0}
    found = translate(written(tmp_path, values))
    assert {text.split(":")[0] for text in found.not_carried_over} >= {"foo.bar", "baz", "method.r"}
    assert found.checked().method.r == 16
    assert "set it" in found.not_carried_over[-1] and found.checked().data.train == "CHANGE-ME"
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
    with pytest.raises(UserError, match="never code"):
        translate(script)
    path = tmp_path / "a.yaml"
    path.write_text("base_model: !!python/object/apply:os.system ['touch ran']")
    with pytest.raises(UserError, match="not valid YAML"):
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
    *("dataset_text_field", "completion_only_loss", "dataset_test_split", "dataset_dir"),
    *("warmup_ratio", "eval_steps", "save_strategy", "fp16", "max_samples", "eval_dataset"),
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
@example(found={"load_in_8bit": True, "use_dora": True})
def test_no_key_is_lost_whatever_the_file_holds(first, found, tmp_path_factory) -> None:
    whole = found | {first: "name"} | ({"stage": "sft"} if first == "model_name_or_path" else {})
    path = tmp_path_factory.mktemp("any") / "config.json"
    path.write_text(json.dumps(whole))
    try:
        translation = translate(path)
    except UserError as error:  # hypothesis finds words such as rl and beta by itself
        kinds = ("only supervised fine-tuning", "are supported", "unmodified base weights")
        kinds += ("not a config of a supported trainer", "not supported", "only text is")
        kinds += ("this file evaluates a model",)
        assert any(kind in str(error) for kind in kinds), error
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
    lora |= {"target_modules": ["q_proj"], "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    values = {"args": arguments, "peft_config": lora}
    found = translate(written(tmp_path, values, "config.json"))
    assert [text for text in found.not_carried_over if "unknown key" in text] == []
