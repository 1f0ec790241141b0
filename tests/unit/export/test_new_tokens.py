"""A run with new tokens, from training to the IR: each form reads and writes them as one token."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from intel_ft.artifacts.resolve import resolve
from intel_ft.config import build
from intel_ft.errors import UserError
from intel_ft.export.convert import convert
from intel_ft.export.merge import merge
from intel_ft.hub.card import _training_rows
from intel_ft.hub.records import read_records
from intel_ft.models.saved_adapter import tensor_shapes
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.open_model import open_model
from intel_ft.runtimes.openvino_lm import OpenVINOLM
from intel_ft.training.run import train

WORDS = ["<GENE>", "kinase"]


@pytest.fixture(scope="module")
def run(page_base, tmp_path_factory) -> Path:
    """A short run on a base with tied embeddings; the answers have the new words."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(page_base, folder / "base")
    rows = [
        {"prompt": f"def {name}(<GENE>)", "completion": f"return {name} kinase <GENE>"}
        for name in ("sum", "min", "max", "any")
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build(
        {
            "model": {
                "name_or_path": str(folder / "base"),
                "dtype": "float32",
                "add_tokens": WORDS,
                "add_special_tokens": ["<|call|>"],
            },
            "data": {"train": str(folder / "train.jsonl"), "template": "none", "max_length": 64},
            "method": {"r": 8, "alpha": 16},
            "train": {
                "max_steps": 40,
                "global_batch_size": 4,
                "save_steps": 20,
                "learning_rate": 0.02,
                "max_tokens_per_row": 128,
                "report_to": [],
            },
            "backend": {"threads": 1},
            "output": {"directory": str(folder / "out")},
        },
        "test",
    )
    train(config)
    first = (folder / "out" / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("adapter", "checkpoint-40"):
        shutil.rmtree(folder / "out" / name)
    train(config, resume=True)
    assert (folder / "out" / "adapter" / "adapter_model.safetensors").read_bytes() == first
    return folder / "out"


def test_they_train_merge_and_run_in_each_form(run, tmp_path) -> None:
    adapter = resolve(str(run))
    model = open_model(adapter, dtype="float32")
    gene, kinase, call = map(model.tokenizer.convert_tokens_to_ids, [*WORDS, "<|call|>"])
    assert (gene, kinase, call) == (325, 326, 327)
    names = [name for name in tensor_shapes(adapter.folder) if "trainable_tokens" in name]
    assert len(names) == 1  # the head is tied to it
    rows = load_file(adapter.folder / "adapter_model.safetensors")[names[0]]
    assert not torch.allclose(rows[0], rows[1])
    prompt = model.tokenizer("def sum(<GENE>)")["input_ids"]
    assert gene in prompt
    answer = model.generate(prompt, Sampling(max_new_tokens=12))
    assert kinase in answer.new_tokens and gene in answer.new_tokens
    assert "kinase" in answer.text and "<GENE>" in answer.text

    report = merge(str(run), tmp_path / "merged")
    assert report.agreement.relative_error < 0.05
    merged = open_model(resolve(str(tmp_path / "merged")), dtype="float32")
    assert merged.generate(prompt, Sampling(max_new_tokens=12)).text == answer.text
    convert(tmp_path / "merged", tmp_path / "ir", "some/base", False)
    ir = OpenVINOLM(tmp_path / "ir", merged.tokenizer, {"INFERENCE_PRECISION_HINT": "f32"})
    assert ir.generate(prompt, Sampling(max_new_tokens=12)).text == answer.text
    tokens = np.array(prompt, np.int32)
    at = np.arange(len(prompt))
    torch.testing.assert_close(
        torch.from_numpy(ir.logits(tokens, at)),
        torch.from_numpy(merged.logits(tokens, at)),
        rtol=0.02,
        atol=0.05,
    )
    from openvino_genai import Tokenizer

    encoded = Tokenizer(str(tmp_path / "ir")).encode("def sum(<GENE>)").input_ids.data
    assert encoded[0].tolist() == prompt


def test_the_card_names_them(run) -> None:
    rows = dict(_training_rows(read_records(resolve(str(run)), None), None))
    assert rows["new tokens"] == "<GENE>, kinase"
    assert rows["new special tokens"] == "<|call|>"
    assert "starting adapter" not in rows


def test_a_run_goes_on_with_them(run, page_base, tmp_path) -> None:
    """From the adapter alone: its tokenizer and its rows."""
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["model"] |= {"adapter": str(run), "add_tokens": [], "add_special_tokens": []}
    values["output"] = {"directory": str(tmp_path / "more")}
    values["train"] |= {"max_steps": 1}
    train(build(values, "test"))
    line = json.loads((tmp_path / "more" / "metrics.jsonl").read_text().splitlines()[0])
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["loss"] < 2 * last["loss"] + 0.1
    values["model"]["adapter_mode"] = "merge"
    with pytest.raises(UserError, match="embeddings of new tokens: merge it first"):
        train(build(values, "test"), overwrite=True)
