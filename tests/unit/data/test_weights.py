"""The weight of each example: from its row, through selection, cache and rows, into the loss."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.data_tokenizers import tokenizer
from support.model_fixtures import TWO_LAYERS
from transformers import LlamaConfig, LlamaForCausalLM

from intel_ft.batching.plan import Plan
from intel_ft.batching.row import build_row
from intel_ft.config_sections import DataConfig, ModelConfig
from intel_ft.data.prepare import prepare
from intel_ft.data.selection import Selection
from intel_ft.data.training_set import tokenize
from intel_ft.errors import UserError
from intel_ft.models.load import load_for_packing
from intel_ft.models.loss import loss_sum
from intel_ft.templates.examples import Examples

ROWS = [("ab", 1), ("ccc", "2.5"), ("d", 0.25), ("eeee", 4)]


@pytest.fixture
def read(tmp_path):
    def read(rows=ROWS, **settings):
        file = tmp_path / "rows.jsonl"
        lines = [{"prompt": "i", "completion": text, "w": weight} for text, weight in rows]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        plain = {"template": "none", "weight_column": "w", "max_length": 64}
        return DataConfig(**{"train": str(file)} | plain | settings)

    return read


def prepared(data):
    return prepare(data, data.train, tokenizer("byte"))


def test_each_example_has_the_weight_of_its_row(read) -> None:
    found = prepared(read())
    assert found.examples.weights.tolist() == [1, 2.5, 0.25, 4]
    assert found.report.unused == ()
    part = found.select(np.array([3, 1])).examples
    assert part.weights.tolist() == [4, 2.5]
    plain = prepared(read(weight_column=None))
    assert plain.examples.weights is None and plain.report.unused == ("w",)
    differs = plain.examples.hashes != found.examples.hashes
    assert differs.tolist() == [False, True, True, True]  # a weight of 1 is none
    both = Selection((plain.examples, found.examples), np.array([0, 5, 7]))
    assert both.weights.tolist() == [1, 2.5, 4]


def test_parts_of_a_document_have_its_weight(read, tmp_path) -> None:
    file = tmp_path / "text.jsonl"
    lines = [{"text": "abc " * 8, "w": 3}, {"text": "x", "w": 2}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = prepared(read(train=str(file), format="text", on_long="split", max_length=16))
    weights = found.examples.weights.tolist()
    assert len(weights) > 2 and weights == [3] * (len(weights) - 1) + [2]


def test_the_cache_keeps_them(read, tmp_path) -> None:
    data = read(cache=str(tmp_path / "cache"))
    for _ in range(2):
        assert tokenize(data, tokenizer("byte")).examples.weights.tolist() == [1, 2.5, 0.25, 4]
    assert (
        tokenize(read(weight_column=None, cache=data.cache), tokenizer("byte")).examples.weights
        is None
    )


@pytest.mark.parametrize("value", [0, -1, "heavy", None, float("nan"), [1]])
def test_a_weight_that_is_no_number_above_0_is_named(read, value) -> None:
    with pytest.raises(UserError, match=r"row 2.*a weight is a number above 0"):
        prepared(read([ROWS[0], ("b", value)]))


def test_a_column_that_is_not_there_is_named(read) -> None:
    with pytest.raises(UserError, match=r"weight_column=other: .*are prompt, completion, w"):
        prepared(read(weight_column="other"))


@pytest.mark.parametrize("share", [False, True])
def test_the_loss_of_a_row_is_weighted(tmp_path, share) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TWO_LAYERS)).save_pretrained(tmp_path)
    model, _ = load_for_packing(ModelConfig(name_or_path=str(tmp_path)), torch.float32)
    prompt = np.arange(5, 45, dtype=np.int32)
    ends = ([8], [9, 9], [8, 8])
    tokens = np.concatenate([part for end in ends for part in (prompt, np.array(end, np.int32))])
    offsets = np.cumsum([0, *(40 + len(end) for end in ends)])
    mask = np.ones(len(tokens), np.bool_)
    mask[offsets[:-1]] = False
    weights = np.array([2, 0.5, 3], np.float32)
    examples = Examples(tokens, mask, offsets, weights=weights)
    everything = np.arange(3)
    row = replace(build_row(examples, everything, share=share), example_weights=weights)
    assert (row.shared is not None) == share
    alone = [
        loss_sum(model, build_row(examples, everything[n : n + 1]), packed=True) for n in range(3)
    ]
    wanted = sum(weight * loss for weight, loss in zip(weights.tolist(), alone, strict=True))
    torch.testing.assert_close(loss_sum(model, row, packed=True), wanted, rtol=1e-5, atol=1e-5)
    plan = Plan(examples.lengths, examples.supervised_counts, 3, 128, 0, weights=weights)
    assert plan.step(0).loss_weight == pytest.approx(2 * 40 + 0.5 * 41 + 3 * 41)
    assert replace(plan, weights=None).step(0).loss_weight == 122
