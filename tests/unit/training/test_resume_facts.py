"""A run resumes as itself only: whatever its meaning depends on is compared, and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_runs import FLIPPED, ROWS, config_in, fill, write_rows
from transformers import AutoTokenizer

from intel_ft.artifacts.fingerprints import (
    config_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from intel_ft.backends import choice
from intel_ft.errors import UserError
from intel_ft.training import checkpoint
from intel_ft.training.run import train
from intel_ft.training.run_facts import check_facts, settings_facts


@pytest.fixture(scope="module")
def reference(bases, tmp_path_factory):
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("reference")
    fill(folder, bases)
    train(config_in(folder))
    return folder


@pytest.fixture
def killed(reference, configure, tmp_path):
    """The folder of that run as if it had been killed after step 2."""
    shutil.copytree(reference / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    return tmp_path


def _replace_base(folder, bases):
    shutil.copy(bases / "other" / "model.safetensors", folder / "base" / "model.safetensors")


def _one_weight(folder, _):
    path = folder / "base" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][40, 20] += 1
    save_file(weights, path, metadata={"format": "pt"})


def _base_config(folder, _):
    path = folder / "base" / "config.json"
    values = json.loads(path.read_text())
    values["rms_norm_eps"] = 1e-2
    path.write_text(json.dumps(values))


def _labels(folder, _):
    write_rows(folder / "train.jsonl", FLIPPED)


def _evaluation(folder, _):
    write_rows(folder / "eval.jsonl", ROWS)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (_replace_base, ["base weights", "model.name_or_path"]),
        (_one_weight, ["base weights"]),
        (_base_config, ["base config.json"]),
        (_labels, ["training data", "data.train"]),
        (_evaluation, ["evaluation data", "data.eval"]),
    ],
)
def test_other_contents_are_refused_by_name(killed, configure, bases, change, parts):
    change(killed, bases)
    with pytest.raises(UserError) as error:
        train(configure(), resume=True)
    for part in (*parts, "checkpoint-2", "--overwrite"):
        assert part in str(error.value)
    assert not (killed / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 7}, "train.seed"),
        ({"global_batch_size": 4}, "train.global_batch_size"),
        ({"keep_answers_together": False}, "train.keep_answers_together"),
        ({"learning_rate": 0.5}, "train.learning_rate"),
        ({"method": {"lora_plus_ratio": 4.0}}, "method.lora_plus_ratio"),
        ({"method": {"r": 8}}, "method.r"),
    ],
)
def test_other_settings_are_refused_by_name(killed, configure, change, key):
    with pytest.raises(UserError, match="checkpoint-2") as error:
        train(configure(**change), resume=True)
    assert f"{key} was" in str(error.value)


def test_a_base_that_was_moved_and_data_that_was_copied_are_the_same(killed, configure, tmp_path):
    (killed / "base").rename(killed / "moved")
    shutil.copy(killed / "train.jsonl", killed / "copy.jsonl")
    config = configure(data={"train": str(killed / "copy.jsonl")})
    model = config.model.model_copy(update={"name_or_path": str(killed / "moved")})
    train(config.model_copy(update={"model": model}), resume=True)
    assert (killed / "run" / "adapter").is_dir()


def test_what_takes_effect_from_here_on_is_said(killed, configure, caplog):
    with caplog.at_level("INFO"):
        train(configure(max_grad_norm=0.5, save_steps=1), resume=True)
    assert "train.max_grad_norm was 1.0" in caplog.text
    assert "train.save_steps was" not in caplog.text
    assert (killed / "run" / "checkpoint-3").is_dir()


def test_a_resumed_run_reports_another_dtype_of_auto(reference, configure, monkeypatch, caplog):
    before = checkpoint.facts_of(reference / "run" / "checkpoint-2")
    assert before["dtype"] == "float32"
    config = configure()
    automatic = config.model_copy(
        update={"model": config.model.model_copy(update={"dtype": "auto"})}
    )
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert choice.dtype_of(automatic) == torch.float32
    with caplog.at_level("INFO"):
        check_facts(Path("checkpoint-2"), before | {"dtype": "bfloat16"}, before)
    assert "dtype was bfloat16 when this run started, and is now float32" in caplog.text


def _rates(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if "lr" in line]


def test_another_number_of_steps_follows_the_new_schedule_at_once(killed, configure, caplog):
    with caplog.at_level("INFO"):
        train(configure(max_steps=8), resume=True)
    linear = [0.02 * (8 - done) / 8 for done in range(8)]
    assert _rates(killed / "run")[2:] == pytest.approx(linear[2:])
    assert "had 4 steps and now has 8: from step 3" in caplog.text
    assert "linear schedule over 8 steps (0.015; it would have been 0.01)" in caplog.text


def test_fewer_steps_than_done_are_said(killed, configure, caplog):
    with caplog.at_level("INFO"):
        summary = train(configure(max_steps=1), resume=True)
    assert "checkpoint-2 is beyond train.max_steps" in caplog.text
    assert summary.steps == 2


def test_evaluation_data_where_there_was_none_is_said(configure, tmp_path, caplog):
    train(configure(data={"eval": None}))
    shutil.rmtree(tmp_path / "run" / "adapter")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with caplog.at_level("INFO"):
        summary = train(configure(), resume=True)
    assert "had no evaluation data" in caplog.text
    assert summary.eval_loss is not None


def test_a_checkpoint_without_facts_is_refused(killed, configure):
    with pytest.raises(UserError, match="earlier version"):
        path = killed / "run" / "checkpoint-2" / checkpoint.PLAN
        path.write_text(json.dumps({"next_step": 2, "fingerprint": "abc"}))
        checkpoint.facts_of(path.parent)


def test_a_tokenizer_that_encodes_the_same_is_said(caplog):
    before = {"tokenizer": "a", "training data": "x", "train.seed": "1"}
    with caplog.at_level("INFO"):
        check_facts(Path("checkpoint-2"), before, before | {"tokenizer": "b"})
    assert "tokenizer differs" in caplog.text


def test_every_difference_is_named():
    before = {"base weights": "a", "train.seed": "1", "method.r": "4", "train.save_steps": "2"}
    now = {name: f"{text}0" for name, text in before.items()}
    with pytest.raises(UserError) as error:
        check_facts(Path("checkpoint-2"), before, now)
    for part in ("base weights", "train.seed was 1", "method.r was 4"):
        assert part in str(error.value)
    assert "save_steps" not in str(error.value)


def test_facts_of_ranks_name_keys_and_versions(configure):
    facts = settings_facts(configure(), {"torch": "2.13"}, Path("run/checkpoint-2"))
    assert facts["train.learning_rate"] == "0.02" and facts["version of torch"] == "2.13"
    assert not any("train.jsonl" in text for text in facts.values()), "files may lie elsewhere"
    assert "checkpoint-2" in facts.values()


# -- fingerprints ----------------------------------------------------------------------------------


def _weights(path, **changes):
    torch.manual_seed(0)
    tensors = {"a": torch.randn(1024, 1024), "b": torch.randn(8)} | changes
    save_file(tensors, path)
    return tensors


def test_weights_are_the_same_however_they_are_split(tmp_path):
    tensors = _weights(tmp_path / "whole.safetensors")
    files = []
    for name, tensor in tensors.items():
        files.append(tmp_path / f"{name}.safetensors")
        save_file({name: tensor}, files[-1], metadata={"format": "pt"})
    for whole in (2**30, 0):
        found = weights_fingerprint([tmp_path / "whole.safetensors"], whole)
        assert weights_fingerprint(files, whole) == found


@pytest.mark.parametrize("whole", [2**30, 0])
def test_weights_that_differ(tmp_path, whole):
    path = tmp_path / "model.safetensors"
    _weights(path)
    known = weights_fingerprint([path], whole)
    tensors = load_file(path)
    tensors["a"] += 1e-3  # as training all weights does
    for changes in (
        {"a": tensors["a"]},
        {"b": torch.zeros(8)},
        {"a": tensors["a"].view(512, 2048)},
        {"c": torch.zeros(1)},
    ):
        _weights(path, **changes)
        assert weights_fingerprint([path], whole) != known


def test_every_byte_of_a_small_model_counts(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = _weights(path)
    known = weights_fingerprint([path])
    for place in np.random.default_rng(0).integers(0, 2**20, 5).tolist():
        changed = tensors["a"].clone().flatten()
        changed[place] += 1
        _weights(path, a=changed.view(1024, 1024))
        assert weights_fingerprint([path]) != known


def test_a_config_is_compared_without_where_it_was_written(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hidden_size": 8, "transformers_version": "4.1"}))
    known = config_fingerprint(tmp_path)
    path.write_text(json.dumps({"transformers_version": "5.5", "hidden_size": 8}))
    assert config_fingerprint(tmp_path) == known
    path.write_text(json.dumps({"hidden_size": 9}))
    assert config_fingerprint(tmp_path) != known


def test_a_tokenizer_is_its_vocabulary_special_tokens_and_chat_template(bases):
    tokenizer = AutoTokenizer.from_pretrained(bases / "one")
    known = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(bases / "other")) == known
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(tokenizer) != known
