"""A merged fine-tune is quantized with its base's tuned recipe, as its IR records."""

import json
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.export_fixtures import PAGE, make_adapter
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

if find_spec("openvino_genai") is None or find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

from optimum.intel.openvino.configuration import get_default_quantization_config

from intel_ft import assets
from intel_ft.artifacts.ir import read_weights
from intel_ft.artifacts.provenance import Provenance
from intel_ft.export.export import export
from intel_ft.export.merge import merge
from intel_ft.quantization import Settings

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What intel_ft logs, collected at its own logger.

    An export's libraries raise the level of the root's handlers, pytest's among them, to ERROR.
    """
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("intel_ft")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("base_id", "config", "expected"),
    [
        ("meta-llama/Llama-2-7b-hf", LlamaConfig, ("int4_sym", 128, 0.6)),
        ("microsoft/Phi-3.5-mini-instruct", Phi3Config, ("int4_asym", 64, 1.0)),
        ("Qwen/Qwen2.5-1.5B-Instruct", Qwen2Config, ("int4_asym", 128, 0.9)),
        ("example/unknown", LlamaConfig, ("int4_asym", 128, 1.0)),
    ],
)
def test_int4_of_a_merged_fine_tune_uses_its_bases_recipe(
    tmp_path, logged, base_id, config, expected
) -> None:
    base = tmp_path / "base"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(assets.resolve("tiny-python-llama"))
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SHAPE), dtype=torch.bfloat16)
    model.save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "run" / "adapter", size=0.2)
    Provenance("adapter", base_id, None, "alpaca", None, "0").save(adapter)
    merge(str(tmp_path / "run"), tmp_path / "my-fine-tune", base=str(base))
    rows = [{"instruction": text, "output": text} for text in PAGE.split("\n\n")[:4]]
    (tmp_path / "calibration.jsonl").write_text("\n".join(map(json.dumps, rows)))

    report = export(
        str(tmp_path / "my-fine-tune"),
        tmp_path / "ir",
        "int4",
        settings=Settings(samples=4),
        calibration=str(tmp_path / "calibration.jsonl"),
    )

    weights = read_weights(tmp_path / "ir")  # rt_info, as NNCF wrote it
    assert (weights.mode, weights.group_size, weights.ratio) == expected
    assert report.base_model == base_id
    recipe = _recipe(tmp_path / "ir")
    assert recipe["why"] in logged
    tuned = get_default_quantization_config(base_id, weight_format="int4")
    if tuned is None:
        assert (recipe["id"], recipe["used"]) == (None, False)
        assert "int4" in recipe["why"] and "no tuned recipe for example/unknown" in recipe["why"]
        assert "default" in recipe["why"]
        return
    assert (recipe["id"], recipe["used"]) == (base_id, True)
    sym = "int4_sym" if tuned["sym"] else "int4_asym"
    assert (sym, tuned["group_size"], tuned["ratio"]) == expected
    awq = getattr(tuned.get("quant_method"), "value", None) == "awq"
    assert weights.record["awq"] == str(awq)
    assert weights.record["scale_estimation"] == str(tuned.get("scale_estimation", False))


def _recipe(folder: Path) -> dict[str, object]:
    recipe: dict[str, object] = json.loads((folder / "export.json").read_text())["recipe"]
    return recipe
