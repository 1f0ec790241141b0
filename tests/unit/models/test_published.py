"""Bases in FP8 and MXFP4: dequantized as Transformers does it, and converted while they load."""

import importlib
import json
import sys
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import architectures
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from intel_ft import assets
from intel_ft.config import build
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.export.merge import merge
from intel_ft.kernels.grouped import Int8Matrices, Int8Tiles
from intel_ft.layers import fused_experts, packed_attention
from intel_ft.models.frozen_base import FrozenLinear, convert_frozen_weights
from intel_ft.models.load import load_base
from intel_ft.models.published import dequantized_fp8, dequantized_mxfp4
from intel_ft.models.streamed import Streamed, streamed_layout
from intel_ft.models.weight_files import check_finite
from intel_ft.training.run import train

BLOCK = (16, 32)


class Blocks:
    """What Transformers' operation reads of its quantizer."""

    class quantization_config:
        weight_block_size = BLOCK


def fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in FP8 with one factor for each block; blocks at the edges may be smaller."""
    rows, columns = (-(-n // b) for n, b in zip(weight.shape, BLOCK, strict=True))
    scales = torch.zeros(rows, columns)
    values = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            at = slice(i * BLOCK[0], (i + 1) * BLOCK[0]), slice(j * BLOCK[1], (j + 1) * BLOCK[1])
            scales[i, j] = weight[at].float().abs().max() / 448
            values[at] = (weight[at].float() / scales[i, j]).to(values.dtype)
    return values, scales


def test_fp8_is_dequantized_as_transformers_does_it() -> None:
    values, scales = fp8(torch.randn(48, 64, generator=torch.Generator().manual_seed(0)))
    parts = {"weight$": [values], "weight_scale_inv": [scales]}
    # Its module imports triton, for kernels that this operation does not use.
    absent = {"triton": mock.MagicMock(), "triton.language": mock.MagicMock()}
    with mock.patch.dict(sys.modules, absent):
        theirs = importlib.import_module("transformers.integrations.finegrained_fp8")
    expected = theirs.Fp8Dequantize(Blocks).convert(parts, full_layer_name="w")["w"]
    assert torch.equal(dequantized_fp8(values, scales, BLOCK), expected)
    cut = dequantized_fp8(values[:41, :50], scales, BLOCK)
    assert torch.equal(cut, expected[:41, :50])
    stacked = dequantized_fp8(values[None], scales[None], BLOCK)
    assert torch.equal(stacked[0], expected)
    with pytest.raises(ValueError, match=r"blocks of 16 x 32 have \[3, 2\]"):
        dequantized_fp8(values, scales[:1], BLOCK)


def test_mxfp4_is_dequantized_as_transformers_does_it() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 12, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 12, 2), generator=generator, dtype=torch.uint8)
    expected = convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(dequantized_mxfp4(blocks, scales), expected)


def saved(folder, name: str, *, in_fp8: bool):
    """A tiny model of this family as it is published; returns the weights that it stands for."""
    model_type, values = architectures.FAMILIES[name]
    config = AutoConfig.for_model(model_type, **values | {"initializer_range": 0.2})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    if not in_fp8:
        return load_file(folder / "model.safetensors")
    return in_fp8_files(folder)


def in_fp8_files(folder):
    """Publish the model in `folder` in FP8; returns the weights that it stands for."""
    weights, meant = {}, {}
    for key, weight in load_file(folder / "model.safetensors").items():
        meant[key] = weights[key] = weight
        if weight.dim() == 2 and "proj" in key:
            weights[key], scales = fp8(weight)
            weights[f"{key}_scale_inv"] = scales
            meant[key] = dequantized_fp8(weights[key], scales, BLOCK)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_file(meant, folder / "meant.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(BLOCK)}
    (folder / "config.json").write_text(json.dumps(settings))
    return meant


@pytest.mark.parametrize("name", ["Qwen 3 MoE", "DeepSeek V3"])
def test_an_fp8_base_loads_as_the_weights_that_it_stands_for(name, tmp_path) -> None:
    meant = saved(tmp_path, name, in_fp8=True)
    check_finite(tmp_path)
    loaded = load_base(ModelConfig(name_or_path=str(tmp_path)), torch.float32)
    loaded.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_text())
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == meant.keys()
    for key, weight in meant.items():
        assert torch.equal(again[key], weight.float()), key


def test_scales_of_other_blocks_are_refused_by_the_weights_name(tmp_path) -> None:
    saved(tmp_path, "Qwen 3 MoE", in_fp8=True)
    weights = load_file(tmp_path / "model.safetensors")
    key = next(key for key in weights if key.endswith("_scale_inv"))
    weights[key] = weights[key][:1]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{key.removesuffix('_scale_inv')}: FP8 weights"):
        load_base(ModelConfig(name_or_path=str(tmp_path)), torch.float32)


@pytest.mark.parametrize(
    ("name", "layout", "in_fp8"),
    [
        ("Qwen 3 MoE", "int8", True),
        ("Qwen 3 MoE", "nf4", False),
        ("Qwen 2 MoE", "int8", False),  # has shared experts
        ("gpt-oss", "nf4", False),
    ],
)
def test_a_streamed_base_is_the_one_that_is_converted_later(
    name, layout, in_fp8, tmp_path, monkeypatch
) -> None:
    if layout == "nf4":
        pytest.importorskip("bitsandbytes")
    saved(tmp_path, name, in_fp8=in_fp8)
    settings = ModelConfig(name_or_path=str(tmp_path))
    whole = load_base(settings, torch.bfloat16, packed_attention.NAME)
    convert_frozen_weights(whole, layout)
    largest = []
    convert = fused_experts.convert_module

    def counted(part, *arguments):
        held = sum(  # of experts that have been read and not converted
            weight.numel()
            for module in root.modules()
            for weight in module.parameters(recurse=False)
            if weight.dim() == 3 and not weight.is_meta and weight.untyped_storage().nbytes() > 2
        )
        largest.append(held / sum(w.numel() for w in part.module.parameters() if w.dim() == 3))
        return convert(part, *arguments)

    def roots(quantizer, model, **_):
        nonlocal root
        root = model
        return before(quantizer, model)

    root = None
    before = Streamed._process_model_before_weight_loading
    monkeypatch.setattr(Streamed, "_process_model_before_weight_loading", roots)
    monkeypatch.setattr("intel_ft.models.streamed.convert_module", counted)
    streamed = load_base(settings, torch.bfloat16, packed_attention.NAME, layout)
    assert largest == [1.0] * len(largest) and largest  # one layer at a time
    assert not hasattr(streamed, "hf_quantizer") and not streamed.is_quantized
    names = {n for n, m in whole.named_modules() if isinstance(m, FrozenLinear)}
    assert names == {n for n, m in streamed.named_modules() if isinstance(m, FrozenLinear)}
    for (key, one), (other_key, other) in zip(
        whole.named_modules(), streamed.named_modules(), strict=True
    ):
        assert key == other_key
        bases = getattr(one, "frozen_experts", {})
        assert bases.keys() == getattr(other, "frozen_experts", {}).keys()
        for parameter, base in bases.items():
            converted = other.frozen_experts[parameter]
            if isinstance(base, Int8Matrices | Int8Tiles):
                assert torch.equal(base.values, converted.values)
                assert torch.equal(base.scales, converted.scales)
            else:
                assert len(base) == len(converted)
    fused_experts.fuse_experts(whole)
    tokens, bounds = torch.arange(3, 20), torch.tensor([0, 9, 17])
    positions = torch.cat((torch.arange(9), torch.arange(8)))
    inputs = packed_attention.row_inputs(tokens, positions, bounds)
    with torch.no_grad():
        one, other = (model(**inputs).logits.float() for model in (whole, streamed))
    assert (one - other).norm() <= 1e-2 * one.norm()


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {"base_dtype": "int8"}}, "int8"),
        ({"method": {"name": "qlora"}}, "nf4"),
        ({}, None),
        ({"model": {"base_dtype": "int8"}, "method": {"init": "pissa"}}, None),
        ({"model": {"base_dtype": "int8"}, "method": {"modules_to_save": ["lm_head"]}}, None),
    ],
)
def test_a_base_is_streamed_unless_its_weights_are_needed(sections, expected) -> None:
    settings = {"model": {"name_or_path": "m"}, "data": {"train": "t"}}
    for section, values in sections.items():
        settings[section] = settings.get(section, {}) | values
    config = build(settings | {"output": {"directory": "o"}}, "test")
    assert streamed_layout(config) == expected


def test_an_fp8_mixture_trains_in_int8_and_its_adapter_merges(tmp_path) -> None:
    architectures.write_model(*architectures.FAMILIES["Qwen 3 MoE"], tmp_path / "base")
    in_fp8_files(tmp_path / "base")
    data = assets.resolve("docstring-to-python/train.jsonl")
    settings = {
        "model": {"name_or_path": str(tmp_path / "base"), "base_dtype": "int8"},
        "data": {"train": data, "split": "train[:16]"},
        "method": {"r": 2},
        "train": {"max_steps": 2, "global_batch_size": 8, "learning_rate": 0.01, "report_to": []},
        "backend": {"name": "cpu", "threads": 1},
        "output": {"directory": str(tmp_path / "run")},
    }
    assert train(build(settings, "test")).steps == 2
    report = merge(str(tmp_path / "run"), tmp_path / "merged")
    assert report.adapter_effect > 0
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in config
