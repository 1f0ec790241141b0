"""Adapters that OpenVINO GenAI applies at run time answer as the merged model does."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from support.export_fixtures import PAGE, make_adapter

if find_spec("openvino_genai") is None or find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

from intel_ft.artifacts.resolve import resolve
from intel_ft.errors import IntelFTError, UserError
from intel_ft.export import adapters as module
from intel_ft.export.adapters import export_adapters
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.open_model import open_model

ADAPTERS = {
    "doubled": {"r": 4, "lora_alpha": 8},
    "halved": {"r": 8, "lora_alpha": 4},
    "rooted": {"r": 16, "lora_alpha": 6, "use_rslora": True},
}


@pytest.fixture(scope="module")
def exported(page_base, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for name, lora in ADAPTERS.items():
        make_adapter(
            page_base, root / name / "adapter", size=0.4 if name == "halved" else 0.15, **lora
        )
    output = root / "ir"
    report = export_adapters([str(root / name) for name in ADAPTERS], output, "fp16")
    assert [one.name for one in report.adapters] == list(ADAPTERS)
    return output


def test_greedy_text_is_that_of_the_merged_model(page_base, exported) -> None:
    import openvino
    import openvino_genai

    files = [exported / "adapters" / name / "adapter_model.safetensors" for name in ADAPTERS]
    adapters = [openvino_genai.Adapter(str(file)) for file in files]
    properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    pipeline = openvino_genai.LLMPipeline(
        str(exported), "CPU", adapters=openvino_genai.AdapterConfig(adapters), **properties
    )
    config = pipeline.get_generation_config()
    config.max_new_tokens, config.do_sample = 20, False
    plain = open_model(resolve(str(page_base)), dtype="float32")
    prompts = [plain.tokenizer(PAGE[at : at + 60])["input_ids"] for at in (0, 200, 500)]
    changed = 0
    for name, adapter in zip(ADAPTERS, adapters, strict=True):
        config.adapters = openvino_genai.AdapterConfig(adapter)  # no alpha: it is in the file
        # As merge() computes it, without rounding to bf16.
        merged = open_model(resolve(str(exported.parent / name)), dtype="float32")
        merged.model = merged.model.merge_and_unload()
        for prompt in prompts:
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            answer = tuple(pipeline.generate(ids, config).tokens[0])
            expected = merged.generate(prompt, Sampling(max_new_tokens=20)).new_tokens
            assert answer[: len(expected)] == expected, name
            changed += plain.generate(prompt, Sampling(max_new_tokens=20)).new_tokens != expected
    assert changed >= 5  # so the above tells them apart


def test_record_and_files(exported) -> None:
    record = json.loads((exported / "export.json").read_text())
    assert (record["kind"], record["format"], record["base_model"]) == (
        "base+adapters",
        "fp16",
        "base",
    )
    assert [(a["name"], a["r"], a["lora_alpha"], a["alpha"]) for a in record["adapters"]] == [
        ("doubled", 4, 8, 1.0),
        ("halved", 8, 4, 1.0),
        ("rooted", 16, 6, 1.0),
    ]
    assert all(one["top1"] > one["top1_without"] for one in record["adapters"])
    for name, factor in (("doubled", 2.0), ("halved", 0.5), ("rooted", 1.5)):
        folder = exported / "adapters" / name
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["lora_alpha"] == config["r"] and not config["use_rslora"]
        assert config["base_model_name_or_path"] == "base"
        original = load_file(exported.parent / name / "adapter" / "adapter_model.safetensors")
        for key, tensor in load_file(folder / "adapter_model.safetensors").items():
            assert tensor.equal(original[key] * (factor if "lora_B" in key else 1)), key


def test_refusals(page_base, tmp_path, monkeypatch) -> None:
    dora = make_adapter(page_base, tmp_path / "dora", use_dora=True)
    with pytest.raises(UserError, match=r"dora: OpenVINO GenAI cannot apply DoRA.*merged"):
        export_adapters([str(dora)], tmp_path / "ir", "fp16")
    experts = make_adapter(page_base, tmp_path / "experts")
    config = experts / "adapter_config.json"
    parameters = {"target_parameters": ["mlp.experts.down_proj"]}
    config.write_text(json.dumps(json.loads(config.read_text()) | parameters))
    with pytest.raises(UserError, match=r"experts: .*LoRA on a mixture's experts.*merged"):
        export_adapters([str(experts)], tmp_path / "ir", "fp16")
    with pytest.raises(UserError, match="takes runs and adapters"):
        export_adapters([str(page_base)], tmp_path / "ir", "fp16")
    plain = make_adapter(page_base, tmp_path / "plain", size=0.15)
    other = make_adapter(page_base, tmp_path / "other")
    record = json.loads((other / "intel_ft.json").read_text())
    (other / "intel_ft.json").write_text(json.dumps(record | {"base_model": "example/other"}))
    with pytest.raises(UserError, match="all adapters in one folder must have the same base"):
        export_adapters([str(plain), str(other)], tmp_path / "ir", "fp16")
    # The check at run time notices a missing lora_alpha / r.
    monkeypatch.setattr(module, "_fold_scaling", lambda tensors, _model: tensors)
    weak = make_adapter(page_base, tmp_path / "weak", size=0.02, r=2, lora_alpha=64)
    with pytest.raises(IntelFTError, match="not applied as it was trained"):
        export_adapters([str(weak)], tmp_path / "ir", "fp16")
    assert not [path for path in tmp_path.iterdir() if "ir" in path.name]
