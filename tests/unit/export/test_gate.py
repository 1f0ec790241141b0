"""The gate's figures against an independent computation, and its table and plot."""

import json
import math

import numpy as np
import pytest
import torch
from support.export_fixtures import make_examples

from intel_ft.artifacts.resolve import resolve
from intel_ft.data.prepare import Prepared
from intel_ft.errors import UserError
from intel_ft.export.gate import COLUMNS, Limits, gate_table, size_quality_plot, table_cells
from intel_ft.export.measure import (
    GateTask,
    Quality,
    read_summary,
    select_examples,
)
from intel_ft.export.run_data import ValidationSet
from intel_ft.inference.evaluate import evaluate
from intel_ft.plot import scatter_plot
from intel_ft.runtimes.open_model import open_model


@pytest.fixture(scope="module")
def made(page_base, tmp_path_factory):
    """A model, the same with its weights perturbed, a task, and the first one's reference."""
    root = tmp_path_factory.mktemp("gate")
    model = open_model(resolve(str(page_base)), dtype="float32")
    other = open_model(resolve(str(page_base)), dtype="float32")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    prepared = Prepared(make_examples(model.tokenizer), [], "none", None)
    task = GateTask(ValidationSet("page", prepared), None, 0, 8)
    (root / "reference").mkdir()
    task.write_reference(model, root / "reference")
    return model, other, task, root / "reference"


def test_a_model_agrees_with_itself(made) -> None:
    model, _, task, reference = made
    quality = task.measure(model, reference)
    assert quality.ppl_increase == pytest.approx(0, abs=1e-6)
    assert quality.kl == pytest.approx(0, abs=1e-6)
    assert quality.agreement == 1.0
    assert quality.first_token_ms > 0 and quality.tokens_per_s > 0
    assert read_summary(reference)["perplexity"] == pytest.approx(quality.perplexity)
    loss = evaluate(model, task.validation.prepared).loss
    assert quality.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


def test_figures_are_what_torch_computes(made) -> None:
    model, other, task, reference = made
    quality = task.measure(other, reference)
    first, second, targets = [], [], []
    examples = task.validation.prepared.examples
    for index in range(len(examples)):
        tokens, supervised = examples[index]
        places = np.flatnonzero(supervised) - 1
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        with torch.no_grad():
            first.append(model.model(ids).logits[0, places].double())
            second.append(other.model(ids).logits[0, places].double())
        targets.append(ids[0, places + 1])
    p = torch.log_softmax(torch.cat(first), -1)
    q = torch.log_softmax(torch.cat(second), -1)
    target = torch.cat(targets)
    loss_p = torch.nn.functional.nll_loss(p, target, reduction="none")
    loss_q = torch.nn.functional.nll_loss(q, target, reduction="none")
    difference = loss_q - loss_p
    assert quality.perplexity == pytest.approx(float(loss_q.mean().exp()), rel=1e-4)
    assert quality.ppl_increase == pytest.approx(float(difference.mean().exp()) - 1, rel=1e-3)
    error = float(difference.std(correction=0) / len(target) ** 0.5)
    assert quality.ppl_increase_error == pytest.approx(error * (1 + quality.ppl_increase), rel=1e-3)
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert quality.kl == pytest.approx(float(kl), rel=1e-3)
    assert quality.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert 0 < quality.agreement < 1 and quality.kl > 0.001


def test_no_more_is_measured_than_fits(made) -> None:
    task = made[2]
    examples = task.validation.prepared.examples
    counts = examples.supervised_counts
    some = select_examples(examples, 384, int(counts.sum() * 384 * 4 * 0.6))
    assert 0 < len(some) < len(examples) and some == sorted(some)
    assert counts[some].sum() <= 0.6 * counts.sum()
    assert select_examples(examples, 384) == list(range(len(examples)))
    with pytest.raises(UserError, match="no supervised token"):
        select_examples(examples, 384, 10)


def test_table_and_plot() -> None:
    row = {
        "name": "int4 <a>",
        "megabytes": 5.25,
        "ppl_increase": 0.011,
        "ppl_increase_error": 0.001,
    }
    assert table_cells(row)[:4] == ["int4 <a>", "5.2", "", "+1.10% ± 0.10%"]
    gate = {
        "reference": {"dtype": "float32", "megabytes": 15.0},
        "table": [row],
        "data": {"source": "val.jsonl", "examples": 12, "positions": 1234},
    }
    table = gate_table(gate)
    assert table.columns == tuple(COLUMNS[i] for i in (0, 1, 3))  # the others are empty
    assert [cells[0] for cells in table.rows] == ["torch, float32", "int4 <a>"]
    assert all(fact in table.notes[0] for fact in ("val.jsonl", "12", "1,234"))
    svg = size_quality_plot(
        [row, row | {"name": "int8", "megabytes": 8.0, "ppl_increase": -0.001}], Limits(0.01)
    )
    assert svg.count("<circle") == 2 and "int4 &lt;a&gt;" in svg and ">limit<" in svg
    from xml.etree import ElementTree

    heights = [
        float(node.get("cy"))
        for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle")
    ]
    assert heights[0] < heights[1]  # the worse one is higher
    with pytest.raises(ValueError, match="at least one point"):
        scatter_plot("", "", "", [])
    json.dumps(row)


@pytest.mark.parametrize(
    ("agreement", "rejected"), [(0.99, False), (0.98, False), (0.979, True), (math.nan, True)]
)
def test_the_minimum_agreement_decides(agreement, rejected):
    quality = Quality(
        perplexity=4.0,
        ppl_increase=0.0,
        ppl_increase_error=0.0,
        kl=0.0,
        agreement=agreement,
        exact_match=None,
        parses=None,
        first_token_ms=None,
        tokens_per_s=None,
    )
    assert (Limits(min_agreement=0.98).why_rejected(quality) is not None) is rejected
    assert Limits().why_rejected(quality) is None
