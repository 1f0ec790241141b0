"""Merging: the result agrees with base plus adapter; what cannot be merged is named."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.export_fixtures import BASE_ID, PAGE, make_adapter, make_model

from intel_ft.artifacts.model_folder import save_whole
from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import resolve
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export.merge import merge, tolerance
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.open_model import open_model


@pytest.fixture(scope="module")
def base(page_base, tmp_path_factory) -> Path:
    return shutil.copytree(page_base, tmp_path_factory.mktemp("merge") / "base")


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    return make_adapter(base, tmp_path / "run" / "adapter")


@pytest.mark.parametrize(
    "lora", [{}, {"use_rslora": True, "r": 8}, {"use_dora": True}, {"lora_alpha": 3}]
)
def test_merged_folder_is_the_adapter_model(base, tmp_path, lora) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", **lora)
    report = merge(str(adapter), tmp_path / "merged")
    assert report.agreement.relative_error < 0.01 < 0.04 < report.adapter_effect
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert not any("lora" in name for name in weights)
    prompt = open_model(resolve(str(base))).tokenizer(PAGE[:40])["input_ids"]
    texts = {
        open_model(resolve(str(tmp_path / name)), dtype="float32")
        .generate(prompt, Sampling(max_new_tokens=12))
        .text
        for name in ("adapter", "merged")
    }
    assert len(texts) == 1


def test_base_id_template_and_system_prompt_are_carried(base, adapter, tmp_path) -> None:
    Provenance("adapter", BASE_ID, "abc", "alpaca", "Be brief.", "0").save(adapter)
    merge(str(adapter.parent), tmp_path / "merged", base=str(base))  # a run folder, base moved
    assert resolve(str(tmp_path / "merged")).kind == "merged"
    provenance = Provenance.load(tmp_path / "merged")
    assert provenance is not None
    assert (provenance.base_model, provenance.base_revision) == (BASE_ID, "abc")
    assert (provenance.template, provenance.system_prompt) == ("alpaca", "Be brief.")
    # Optimum-Intel keys its tuned recipes by this.
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["_name_or_path"] == BASE_ID


def _change(adapter: Path, change) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _nan(tensors) -> None:
    tensors[sorted(tensors)[3]][0, 0] = float("nan")


def _infinity(tensors) -> None:
    tensors[sorted(tensors)[3]][0, 0] = float("inf")


def _extra_layer(tensors) -> None:
    name = next(name for name in tensors if "layers.0" in name)
    tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()


def _missing_tensor(tensors) -> None:
    del tensors[sorted(tensors)[0]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_nan, "NaN or infinity"),
        (_infinity, "NaN or infinity"),
        (_extra_layer, "too many"),
        (_missing_tensor, "1 tensor missing"),
    ],
)
def test_bad_tensors_are_named(adapter, tmp_path, change, words) -> None:
    _change(adapter, change)
    _refused(adapter, tmp_path, words, "lora_")


def test_damaged_missing_and_pickled_files(adapter, tmp_path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    _refused(adapter, tmp_path, "adapter_model.safetensors", "damaged")
    weights.rename(adapter / "adapter_model.bin")
    _refused(adapter, tmp_path, "no adapter_model.safetensors", "pickle")
    (adapter / "adapter_config.json").unlink()
    _refused(adapter, tmp_path, "no model here")


def test_another_base(base, adapter, tmp_path) -> None:
    other = tmp_path / "other"
    make_model(384, 96).to(torch.bfloat16).save_pretrained(other)
    with pytest.raises(UserError, match=r"does not fit its base model .*size mismatch"):
        merge(str(adapter), tmp_path / "merged", base=str(other))
    with pytest.raises(UserError, match="gone"):
        merge(str(adapter), tmp_path / "merged", base=str(tmp_path / "gone"))
    assert not (tmp_path / "merged").exists()


def test_quantized_base(base, adapter, tmp_path) -> None:
    config = base / "config.json"
    before = config.read_text()
    quantized = json.loads(before) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    config.write_text(json.dumps(quantized))
    try:
        _refused(adapter, tmp_path, "quantized", "bitsandbytes", "--base")
    finally:
        config.write_text(before)


def test_nothing_to_merge_and_output_taken(base, adapter, tmp_path) -> None:
    _refused(base, tmp_path, "no adapter to merge")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious").touch()
    with pytest.raises(UserError, match="not empty"):
        merge(str(adapter), tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["precious"]


def test_a_merge_gone_wrong_is_refused(adapter, tmp_path, monkeypatch) -> None:
    from peft import PeftModel

    # The adapter's effect left out altogether: what a silent failure would look like.
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    with pytest.raises(IntelFTError, match="does not agree with base plus adapter"):
        merge(str(adapter), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / ".merged.partial").exists()


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_embeddings_is_refused(base, tmp_path, target) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", 0.005, target_modules=["q_proj", target])
    _refused(adapter, tmp_path, target, "tie_word_embeddings", "cannot be merged")


@pytest.mark.parametrize(
    ("error", "effect", "rounding", "accepted"),
    [
        (0.0104, 0.0103, 0.0064, False),  # an adapter on a tied head, merged into both embeddings
        (0.015, 0.021, 0.008, False),
        (0.0061, 0.0177, 0.0066, True),  # right, with a small effect
        (0.0057, 0.1437, 0.0060, True),
        (0.062, 0.5, 0.062, True),  # right, 32 layers
        (float("nan"), 0.1, 0.01, False),
    ],
)
def test_the_gate_is_relative_to_the_effect(error, effect, rounding, accepted) -> None:
    assert (error <= tolerance(rounding, effect)) is accepted


GENERATION = [
    {"min_p": 0.1},
    {"typical_p": 0.9},
    {"pad_token_id": -1},
    {"temperature": 0.0},
    {"temperature": 0.6, "top_p": 0.9, "do_sample": False},  # Llama 2
    {"num_beams": 1, "early_stopping": True, "length_penalty": 0.8},
]


@pytest.mark.parametrize("values", GENERATION, ids=str)
def test_generation_config_is_the_bases_own(tmp_path, values) -> None:
    base, folder = tmp_path / "base", tmp_path / "saved"
    base.mkdir()
    (base / "generation_config.json").write_text(json.dumps(values | {"eos_token_id": [1]}))
    model = make_model(384, 64)
    save_whole(model, SimpleNamespace(eos_token_id=2), folder, BASE_ID, base)
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved == values | {"eos_token_id": [1, 2]}


def test_a_base_without_generation_config_gets_the_stop_tokens(tmp_path) -> None:
    save_whole(
        make_model(384, 64), SimpleNamespace(eos_token_id=7), tmp_path / "saved", BASE_ID, tmp_path
    )
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [2, 7]
    assert saved["bos_token_id"] == 1


def test_merging_keeps_a_generation_config_that_cannot_be_saved(base, tmp_path) -> None:
    own = tmp_path / "own"
    shutil.copytree(base, own)
    values = json.loads((own / "generation_config.json").read_text())
    values |= {"min_p": 0.1, "temperature": 0.0, "pad_token_id": -1}
    (own / "generation_config.json").write_text(json.dumps(values))
    merge(str(make_adapter(base, tmp_path / "adapter")), tmp_path / "merged", base=str(own))
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text()) == values


def _refused(source: Path, tmp_path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        merge(str(source), tmp_path / "merged")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / ".merged.partial").exists()
