"""Merging: the result agrees with base plus adapter; what cannot be merged is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.export_fixtures import BASE_ID, PAGE, make_adapter, make_model

from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import resolve
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export.merge import merge
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
        (_extra_layer, "have no place in it"),
        (_missing_tensor, "are missing"),
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


def _refused(source: Path, tmp_path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        merge(str(source), tmp_path / "merged")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / ".merged.partial").exists()
