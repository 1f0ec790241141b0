"""A reward model's export: the IR scores as torch does, padded or not, and the gate measures it."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.export_fixtures import PAGE
from transformers import AutoTokenizer, LlamaForSequenceClassification

if find_spec("openvino_genai") is None or find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

from intel_ft import api
from intel_ft.artifacts.resolve import resolve
from intel_ft.errors import UserError
from intel_ft.export.context import ModelToExport, refuse_for_scores
from intel_ft.export.export import export
from intel_ft.export.gate import Gate, Limits, gate_table, log_line, size_quality_plot
from intel_ft.export.measure_pairs import MOST_PAIRS, PairQuality, PairTask
from intel_ft.export.tasks import compare_scores
from intel_ft.quantization import Settings
from intel_ft.runtimes.open_model import open_reward
from intel_ft.templates.answers import pairs_of
from intel_ft.templates.examples import Examples

LINES = [line for line in PAGE.splitlines() if len(line) > 12]


def save_classifier(base: Path, folder: Path, **config) -> Path:
    """A classifier on the decoder of `base`, with scores that differ between texts."""
    model = LlamaForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.bfloat16, **config
    )
    torch.manual_seed(3)
    with torch.no_grad():
        model.score.weight.normal_(std=0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(page_base, tmp_path_factory) -> SimpleNamespace:
    """An int8 IR of a reward model that has no padding token, and pairs to measure it on."""
    root = tmp_path_factory.mktemp("reward")
    source = save_classifier(page_base, root / "reward", pad_token_id=None)
    pairs = root / "pairs.jsonl"
    rows = [
        {"prompt": LINES[n], "chosen": LINES[n + 1], "rejected": LINES[-n - 1]} for n in range(12)
    ]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    gate = Gate(Limits(min_agreement=0.5, max_task_drop=0.9), data=str(pairs))
    report = export(str(source), root / "ir", "int8", gate=gate)
    record = json.loads((root / "ir" / "export.json").read_text())
    return SimpleNamespace(source=source, ir=root / "ir", pairs=pairs, report=report, record=record)


def test_the_ir_scores_as_transformers_does_in_any_batch(made) -> None:
    from optimum.intel import OVModelForSequenceClassification

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    ir = OVModelForSequenceClassification.from_pretrained(made.ir, ov_config=exact)
    model = LlamaForSequenceClassification.from_pretrained(made.source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(made.ir)
    texts = [LINES[0], "\n".join(LINES[3:9]), "x", f"{LINES[5]}<pad>"]
    with torch.no_grad():
        wanted = torch.stack(
            [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
        )
    assert wanted.std() > 1
    for side in ("right", "left"):
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
        torch.testing.assert_close(ir(**batch).logits, wanted, rtol=0.03, atol=0.03)
    assert ir.config.pad_token_id is None and ir.config.num_labels == 1


def test_the_folder_and_its_record_are_complete(made) -> None:
    names = {path.name for path in made.ir.iterdir()}
    assert names >= {"openvino_tokenizer.xml", "tokenizer.json", "intel_ft.json", "export.json"}
    assert not names & {"graph.pbtxt", "ovms_config.json"}  # of a server of language models
    assert [path.name for path in made.ir.parent.iterdir() if path.name[0] == "."] == []
    assert made.report.tokenizer_agrees and made.report.weights.share("u8", "i8") > 0.95
    record = made.record
    assert (record["task"], record["format"]) == ("text-classification", "int8")
    assert record["runtime"]["kv_cache_precision"] is None
    gate, (row,) = record["gate"], record["gate"]["table"]
    assert gate["data"] == {"source": "pairs.jsonl", "pairs": 12} and row["passed"]
    assert row["correlation"] > 0.99 and 0 < row["max_difference"] < 0.2 and row["agreement"] > 0.5
    assert row["pair_accuracy"]["reference"] == gate["reference"]["pair_accuracy"]
    found = api.evaluate(made.ir, made.pairs)
    assert found.pair_accuracy == row["pair_accuracy"]["score"] and found.pairs == 12
    model = open_reward(resolve(str(made.ir)))
    scores = [model.score(np.array(model.tokenizer(line)["input_ids"])) for line in LINES[:4]]
    assert any(np.float32(one).view(np.uint32) & 0xFFFF for one in scores), "rounded to bf16"
    in_torch = api.evaluate(made.source, made.pairs)
    assert found.reward_margin == pytest.approx(in_torch.reward_margin, abs=0.05)
    cells = gate_table(gate).rows[1]
    assert "12 pairs" in gate_table(gate).notes[0] and f"{row['correlation']:.5f}" in cells
    assert size_quality_plot([row, row], Limits(min_agreement=0.9)).count("<circle") == 2


@pytest.mark.parametrize(
    ("gate", "settings", "recover", "named"),
    [
        (Gate(Limits(max_ppl_increase=0.1)), Settings(), False, "--max-ppl-increase"),
        (Gate(generate=2), Settings(), False, "--generate"),
        (Gate(task="python"), Settings(), False, "--task"),
        (Gate(), Settings(), True, "--recover"),
        (Gate(), Settings(kv_cache="u8"), False, "kv_cache"),
    ],
)
def test_options_for_language_models_are_refused(made, gate, settings, recover, named) -> None:
    with pytest.raises(UserError, match=f"{named} is for language models"):
        refuse_for_scores(resolve(str(made.source)), gate, settings, recover=recover)


def test_other_classifiers_families_and_data_are_refused(made, page_base, tmp_path) -> None:
    several = save_classifier(page_base, tmp_path / "several")
    config = json.loads((several / "config.json").read_text())
    labels = {"0": "a", "1": "b"}
    (several / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    with pytest.raises(UserError, match="this classifier has 2 labels"):
        export(str(several), tmp_path / "ir", "fp16")
    (several / "config.json").write_text(json.dumps(config | {"model_type": "mixtral"}))
    source = ModelToExport(resolve(str(several)), None, trust_remote_code=False, allow_pickle=False)
    with pytest.raises(UserError, match="no export of a sequence classifier of model_type mixtral"):
        source.refuse_unexportable()
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    for data, why in ((plain, "measured on pairs of answers"), (None, "no validation set")):
        limits = Limits(min_agreement=0.9)
        gate = Gate(limits, data=data and str(data))
        with pytest.raises(UserError, match=why):
            export(str(made.source), tmp_path / "ir", "fp16", gate=gate)
    reference = Gate(data=str(made.pairs), reference=str(page_base))
    with pytest.raises(UserError, match="one of the two is a reward model"):
        export(str(made.source), tmp_path / "ir", "fp16", gate=reference)
    assert not (tmp_path / "ir").exists()


class Fixed:
    """Scores a text by its last token."""

    tokenizer = None

    def __init__(self, values) -> None:
        self.values = values

    def score(self, tokens) -> float:
        return float(self.values[int(tokens[-1])])


def task_of(count: int) -> PairTask:
    tokens = np.arange(2 * count, dtype=np.int32)
    pairs = pairs_of(Examples(tokens, np.ones(len(tokens), bool), np.arange(len(tokens) + 1)))
    prepared = SimpleNamespace(examples=pairs)
    return PairTask(SimpleNamespace(source="pairs", prepared=prepared))


def test_figures_of_pairs(tmp_path) -> None:
    task = task_of(4)
    reference = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0, 3.0, 2.5])
    task.write_reference(Fixed(reference), tmp_path)
    found = reference + np.array([0, 0, 0, 0, 0.25, -0.25, -0.5, 0.5])  # the last pair: other order
    quality = task.measure(Fixed(found), tmp_path)
    accuracy = quality.pair_accuracy
    assert (accuracy.reference, accuracy.score, accuracy.difference) == (0.75, 0.5, -0.25)
    assert quality.agreement == 0.75 and quality.max_difference == 0.5
    assert quality.correlation == pytest.approx(np.corrcoef(reference, found)[0, 1])
    same = task.measure(Fixed(np.ones(8)), tmp_path)
    assert same.correlation is None and same.agreement == 0.0
    assert task.read_quality(json.loads(json.dumps(vars(quality), default=vars))) == quality
    assert len(task_of(MOST_PAIRS + 5).pairs()) == MOST_PAIRS


def test_limits_on_pairs() -> None:
    right = compare_scores([1.0] * 90 + [0.0] * 10, [1.0] * 100)
    quality = PairQuality(right, 0.9, 0.99, 0.1, 100.0)
    assert Limits(min_agreement=0.9).why_rejected(quality) is None
    why = Limits(min_agreement=0.95).why_rejected(quality)
    assert why == "share of pairs in the same order 0.9000 (limit 0.95)"
    why = Limits(max_task_drop=0.11).why_rejected(quality)
    assert "pair accuracy 90.0% where the reference has 100.0%" in why
    assert "more pairs might show" in why
    row = SimpleNamespace(name="int8", megabytes=1.0, quality=quality)
    passed = log_line(row, Limits(max_ppl_increase=0.1, min_agreement=0.9))
    assert passed.endswith(": passed (limit share of pairs in the same order 90.00%)")
    assert log_line(row, Limits()).endswith("same order 0.9000: measured, no limit")
