"""Which files are a model's weights, and which folders are refused: shards, copies, quantized."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.harness import DATA, MODEL, write_config
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig

from intel_ft.config import Config, load
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.models.load import check_base, check_folder, load_base, parameter_count
from intel_ft.models.weight_files import check_finite, weight_files
from intel_ft.training.model_sizes import count_model
from intel_ft.training.run import train
from intel_ft.training.setup import read_inputs

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model in three shards."""
    torch.manual_seed(0)
    path = tmp_path / "model"
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    model.save_pretrained(path, max_shard_size="20KB")
    assert len(weight_files(path)) > 1
    return path


def refused(folder: Path) -> str:
    settings = ModelConfig(name_or_path=str(folder))
    with pytest.raises(UserError) as caught:
        check_base(folder, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def config_for(base: Path, folder: Path) -> Config:
    path = write_config(
        folder / "config.yaml",
        model={"name_or_path": str(base)},
        data={"train": str(DATA), "split": "train[:8]"},
        output={"directory": str(folder / "run")},
    )
    return load(path)


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_copy_in_another_layout_is_neither_counted_nor_loaded(folder) -> None:
    settings = ModelConfig(name_or_path=str(folder))
    before = parameter_count(folder)
    save_file({"tok_embeddings.weight": torch.zeros(61, 32)}, folder / "consolidated.safetensors")
    check_base(folder, settings)
    assert parameter_count(folder) == before
    assert sum(p.numel() for p in load_base(settings, torch.float32).parameters()) == before


def test_only_another_layout_is_refused(folder) -> None:
    weights = {name: t for path in weight_files(folder) for name, t in load_file(path).items()}
    for path in weight_files(folder):
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(weights, folder / "consolidated.safetensors")
    assert "consolidated.safetensors is not a file that Transformers loads" in refused(folder)


def test_one_file_beside_shards_is_refused_because_transformers_takes_the_file(folder) -> None:
    shutil.copy(weight_files(folder)[0], folder / "model.safetensors")
    line = refused(folder)
    assert "both model.safetensors and the shards" in line
    assert "delete" in line


def test_a_missing_shard_is_refused_before_anything_is_loaded(folder) -> None:
    shards = weight_files(folder)
    shards[1].unlink()
    line = refused(folder)
    assert f"1 of {len(shards)} are missing" in line
    assert shards[1].name in line


def test_a_shard_of_another_download_lacks_tensors(folder) -> None:
    first, second = weight_files(folder)[:2]
    shutil.copy(first, second)
    assert refused(folder).startswith(f"{second}: ")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": [1]}', "{}"])
def test_a_broken_index_is_refused(folder, text) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(text)
    assert refused(folder).startswith(f"{index}: ")


def test_an_adapter_given_as_a_model(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    line = refused(tmp_path)
    assert "LoRA adapter" in line
    assert "org/base" in line


@pytest.mark.parametrize(
    ("key", "settings", "named"),
    [
        ("quantization_config", {"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
        ("quantization_config", {"quant_method": "gptq", "bits": 8}, "gptq, 8 bits"),
        ("quantization_config", {"quant_method": "fp8"}, "fp8"),
        ("quantization_config", {"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ("quantization_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ("quantization", {"group_size": 64, "bits": 4}, "unknown method, 4 bits"),
        ("compression_config", {"format": "pack-quantized"}, "unknown method"),
        (
            "text_config",
            {"model_type": "llama", "quantization_config": {"quant_method": "fp8"}},
            "fp8",
        ),
    ],
)
def test_a_quantized_base_is_refused_by_its_method(folder, key, settings, named) -> None:
    edit_config(folder, **{key: settings})
    line = refused(folder)
    assert line.startswith(f"{folder / 'config.json'}: ")
    assert f"({named})" in line
    assert "unquantized" in line


def test_bitsandbytes_weights_may_infer(folder) -> None:
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes"})
    check_folder(folder, ModelConfig(name_or_path=str(folder)))


def test_validate_and_plan_refuse_a_quantized_base(tmp_path) -> None:
    shutil.copytree(MODEL, tmp_path / "awq")
    edit_config(tmp_path / "awq", quantization_config={"quant_method": "awq", "bits": 4})
    for check in (read_inputs, count_model):
        with pytest.raises(UserError, match="awq, 4 bits"):
            check(config_for(tmp_path / "awq", tmp_path))


def test_mxfp4_is_dequantized_while_it_is_loaded(tmp_path) -> None:
    torch.manual_seed(0)
    config = GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    weights, expected = {}, {}
    for name, weight in model.state_dict().items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            weights[name] = weight.clone()
            continue
        experts, inputs, outputs = weight.shape
        # E2M1 code 2 is 1.0 and code 4 is 2.0; the scale's exponent is 126 - 127.
        weights[f"{name}_blocks"] = torch.full((experts, outputs, inputs // 32, 16), 0x42).byte()
        weights[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 126).byte()
        expected[name] = torch.tensor([0.5, 1.0]).repeat(inputs // 2)
    config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    edit_config(tmp_path, quantization_config={"quant_method": "mxfp4"}, dtype="bfloat16")
    settings = ModelConfig(name_or_path=str(tmp_path))
    check_base(tmp_path, settings)
    loaded = load_base(settings, torch.bfloat16)
    for name, column in expected.items():
        assert torch.equal(loaded.state_dict()[name][1, :, 3].float(), column)
    loaded.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved/config.json").read_text())
    again = load_base(ModelConfig(name_or_path=str(tmp_path / "saved")), torch.bfloat16)
    for name, weight in loaded.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_nan_in_the_base_is_named_and_not_blamed_on_the_learning_rate(tmp_path) -> None:
    shutil.copytree(MODEL, tmp_path / "nan")
    path = tmp_path / "nan" / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 5] = float("nan")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=name):
        check_finite(tmp_path / "nan")
    with pytest.raises(UserError, match=f"{name} contains NaN") as caught:
        train(config_for(tmp_path / "nan", tmp_path))
    assert "learning_rate" not in str(caught.value)
