"""Export: the IR has the stated format and computes what torch computes; no partial output."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.export_fixtures import PAGE, make_adapter, make_examples, make_run

if find_spec("openvino_genai") is None or find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

from intel_ft.artifacts.ir import read_weights
from intel_ft.artifacts.provenance import Provenance
from intel_ft.artifacts.resolve import resolve
from intel_ft.batching.row import build_row
from intel_ft.config import build
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import EnvironmentProblem, GateRefused, UserError
from intel_ft.export import run_data
from intel_ft.export.export import export
from intel_ft.export.gate import Gate, Limits
from intel_ft.inference.evaluate import evaluate
from intel_ft.models.load import load_for_packing, load_tokenizer
from intel_ft.quantization import Settings
from intel_ft.runtimes import openvino_lm
from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.open_model import open_model
from intel_ft.runtimes.openvino_lm import OpenVINOLM
from intel_ft.templates.formats import Conversation, Message
from intel_ft.training.distillation import Teacher
from intel_ft.training.ir_teacher import IRTeacher
from intel_ft.training.run import train

F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


@pytest.fixture(scope="module")
def made(page_base, tmp_path_factory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("export")
    adapter = make_adapter(page_base, root / "run" / "adapter", size=0.2)
    reports = {
        "fp16": export(str(page_base), root / "fp16", "fp16"),
        "int8": export(str(root / "run"), root / "int8", "int8"),
    }
    return SimpleNamespace(root=root, base=page_base, adapter=adapter, **reports)


def test_weights_are_what_the_format_says(made) -> None:
    int8, fp16 = read_weights(made.root / "int8"), read_weights(made.root / "fp16")
    assert int8 == made.int8.weights
    assert int8.bits == 8
    assert int8.mode == "int8_asym"
    assert int8.share("u8", "i8") > 0.95
    assert fp16.bits == 16
    assert fp16.mode is None
    assert fp16.share("f16") > 0.999  # no bf16 and no f32 but a few scalars
    assert made.int8.megabytes < made.fp16.megabytes


def test_folder_is_complete_and_carries_the_base(made) -> None:
    names = {path.name for path in (made.root / "int8").iterdir()}
    assert names >= {
        "openvino_model.xml",
        "openvino_model.bin",
        "openvino_tokenizer.xml",
        "openvino_detokenizer.xml",
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "generation_config.json",
        "intel_ft.json",
        "export.json",
        "graph.pbtxt",
        "ovms_config.json",
    }
    assert not [name for name in names if name.startswith(".")]
    for path in (made.root / "int8").iterdir():
        assert str(made.root).encode() not in path.read_bytes(), path  # no path of this machine
    artifact = resolve(str(made.root / "int8"))
    assert (artifact.kind, artifact.base_model) == ("openvino", "base")  # the name, not the path
    assert (artifact.template, artifact.system_prompt) == ("alpaca", "Be brief.")
    assert made.int8.tokenizer_agrees
    assert made.fp16.tokenizer_agrees


def test_optimum_finds_the_recipe_of_the_base(made, tmp_path) -> None:
    from optimum.intel.openvino.configuration import get_default_quantization_config

    shutil.copytree(made.adapter, tmp_path / "adapter")
    known = "meta-llama/Llama-2-7b-chat-hf"
    Provenance("adapter", known, None, "alpaca", None, "0").save(tmp_path / "adapter")
    export(str(tmp_path / "adapter"), tmp_path / "ir", "fp16", base=str(made.base))
    recipe = get_default_quantization_config(str(tmp_path / "ir"), weight_format="int4")
    assert recipe is not None
    assert recipe == get_default_quantization_config(known, weight_format="int4")


def test_ir_computes_what_torch_computes(made) -> None:
    tokenizer = open_model(resolve(str(made.base))).tokenizer
    torch_model = open_model(resolve(str(made.base)), dtype="float32")
    ir = OpenVINOLM(made.root / "fp16", tokenizer, F32)
    tokens = np.array(tokenizer(PAGE[:300])["input_ids"], dtype=np.int32)
    positions = np.arange(0, len(tokens), 2)
    torch_logits, ir_logits = torch_model.logits(tokens, positions), ir.logits(tokens, positions)
    assert torch_logits.shape == ir_logits.shape == (len(positions), len(tokenizer))
    np.testing.assert_allclose(torch_logits, ir_logits, atol=2e-3 * np.abs(torch_logits).max())
    again = ir.logits(tokens, positions)  # the state of the call before is gone
    np.testing.assert_array_equal(ir_logits, again)
    for start in (0, 7, 30):
        prompt = tokens[start : start + 20].tolist()
        sampling = Sampling(max_new_tokens=24)
        streamed: list[str] = []
        answer = ir.generate(prompt, sampling, streamed.append)
        assert answer.new_tokens == torch_model.generate(prompt, sampling).new_tokens
        assert "".join(streamed) == answer.text
        assert len(streamed) > 3


def test_a_large_ir_has_one_compiled_form_at_a_time(made, monkeypatch) -> None:
    monkeypatch.setattr(openvino_lm, "LARGE", 1)
    ir = OpenVINOLM(made.root / "fp16", load_tokenizer(ModelConfig(name_or_path=str(made.base))))
    tokens, positions = np.arange(3, 9, dtype=np.int32), np.array([5])
    first = ir.logits(tokens, positions)
    ir.generate(tokens.tolist(), Sampling(max_new_tokens=2))
    assert list(ir._compiled) == ["pipeline"]
    np.testing.assert_array_equal(ir.logits(tokens, positions), first)
    assert list(ir._compiled) == ["logits"]


def test_losses_are_near(made) -> None:
    torch_model = open_model(resolve(str(made.adapter)))
    examples = make_examples(torch_model.tokenizer)
    prepared = SimpleNamespace(examples=examples, conversations=[], template="none")
    adapter = evaluate(torch_model, prepared)
    int8 = evaluate(open_model(resolve(str(made.root / "int8"))), prepared)
    assert int8.perplexity == pytest.approx(adapter.perplexity, rel=0.02)
    base = evaluate(open_model(resolve(str(made.base))), prepared)
    fp16 = evaluate(open_model(resolve(str(made.root / "fp16"))), prepared)
    assert fp16.loss == pytest.approx(base.loss, rel=0.01)
    assert abs(adapter.loss - base.loss) > 0.02  # so the above tells them apart


def test_sampling_stopping_and_generating_for_evaluation(made) -> None:
    ir = open_model(resolve(str(made.root / "fp16")))
    prompt = ir.tokenizer(PAGE[:60])["input_ids"]
    hot = Sampling(max_new_tokens=16, temperature=2.0, top_p=0.95, top_k=50, seed=3)
    first, second = ir.generate(prompt, hot), ir.generate(prompt, hot)
    assert first.text == second.text
    other = ir.generate(prompt, Sampling(max_new_tokens=16, temperature=2.0, seed=4))
    assert other.text != first.text
    with pytest.raises(UserError, match="context window is 256"):
        ir.generate(prompt * 20, hot)
    with pytest.raises(ZeroDivisionError):  # what the caller's stream raises reaches the caller

        def stream(text: str) -> None:
            raise ZeroDivisionError

        ir.generate(prompt, hot, stream)
    assert ir.generate(prompt, hot).text == first.text  # and the pipeline lives on
    conversation = Conversation((Message("user", PAGE[:30]), Message("assistant", "x = 1")))
    prepared = SimpleNamespace(
        examples=make_examples(ir.tokenizer), conversations=[conversation] * 3, template="none"
    )
    result = evaluate(ir, prepared, generate=2, max_new_tokens=4)
    assert (result.generated, result.exact_match) == (2, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.mark.parametrize(
    ("weight_format", "settings", "mode"),
    [
        ("int4", {"samples": 2, "ratio": 0.9}, "int4_asym"),
        ("nf4", {"kv_cache": "f16", "sym": True}, "nf4"),
        ("mxfp4", {}, "mxfp4"),
        ("int8", {"activations": "int8", "samples": 2}, "int8 activations"),
    ],
)
def test_every_format_opens_in_every_runtime(made, tmp_path, weight_format, settings, mode) -> None:
    import openvino_genai
    from optimum.intel import OVModelForCausalLM

    examples = [{"instruction": text, "output": text} for text in PAGE.split("\n\n")[:4]]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, examples)))
    report = export(
        str(made.root / "run"),
        tmp_path / "ir",
        weight_format,
        settings=Settings(**settings),
        calibration=str(tmp_path / "data.jsonl"),
    )
    assert report.weights.mode == mode and report.gate is None
    record = json.loads((tmp_path / "ir" / "export.json").read_text())
    assert record["format"] == weight_format and record["quantization"]["mode"] == mode
    assert record["recipe"]["used"] is False and record["training"] is None
    if "samples" in settings:
        assert record["calibration"].items() >= {"source": "data.jsonl", "samples": 2}.items()
    else:
        assert record["calibration"] is None  # none of these options uses data
    if settings.get("kv_cache"):
        assert record["runtime"]["kv_cache_precision"] == "f16"
        assert '"KV_CACHE_PRECISION": "f16"' in (tmp_path / "ir" / "graph.pbtxt").read_text()
    prompt = "def add(a, b):"
    pipeline = openvino_genai.LLMPipeline(str(tmp_path / "ir"), "CPU")
    assert len(pipeline.generate(prompt, max_new_tokens=5)) > 0
    optimum = OVModelForCausalLM.from_pretrained(tmp_path / "ir")
    tokenizer = open_model(resolve(str(tmp_path / "ir"))).tokenizer
    answer = optimum.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=5)
    assert answer.shape[1] > len(tokenizer(prompt)["input_ids"])


def test_auto_selects_the_first_that_passes_and_resumes_when_interrupted(
    run, tmp_path, monkeypatch
) -> None:
    from intel_ft.export import try_candidate as module

    made: list[str] = []
    quantize = module.quantize

    def counted(fp16, partial, options, *rest, **named) -> None:
        made.append(partial.name)
        if partial.name == ".int8.partial" and len(made) == 2:
            raise KeyboardInterrupt
        quantize(fp16, partial, options, *rest, **named)

    monkeypatch.setattr(module, "quantize", counted)
    settings = Settings(group_size=64, samples=4, ratio=0.5, scale_estimation=False)
    strict = Gate(Limits(min_agreement=0.98))
    arguments = (str(run), tmp_path / "ir", "auto")
    with pytest.raises(KeyboardInterrupt):
        export(*arguments, settings=settings, gate=strict)
    assert not (tmp_path / "ir").exists()
    assert made == [".int4.partial", ".int8.partial"]
    report = export(*arguments, settings=settings, gate=strict)
    assert made[2:] == [".int8.partial"]  # what was measured is not made again
    assert report.name == "int8"
    assert [path.name for path in tmp_path.iterdir()] == ["ir"]
    record = json.loads((tmp_path / "ir" / "export.json").read_text())
    rows = record["gate"]["table"]
    assert [(row["name"], row["passed"]) for row in rows] == [("int4", False), ("int8", True)]
    assert rows[0]["megabytes"] < rows[-1]["megabytes"] < record["gate"]["reference"]["megabytes"]
    assert rows[0]["kl"] > rows[-1]["kl"] > 0
    assert (tmp_path / "ir" / "export.svg").read_text().count("<circle") == 2
    assert record["gate"]["data"]["examples"] == 12
    assert record["training"]["config"]["data"]["train"] == "train.jsonl"
    assert (record["training"]["steps"], record["training"]["train_loss"]) == (1, 1.5)
    # The gate rejects a candidate that misses its limit, and leaves nothing.
    with pytest.raises(GateRefused, match=r"int8: top-1 agreement 0\.\d+ \(limit 1\)"):
        export(str(run), tmp_path / "no", "int8", gate=Gate(Limits(None, 1.0)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ir"]


def test_calibration_uses_training_examples_only(run, monkeypatch) -> None:
    from intel_ft.data.prepare import prepare
    from intel_ft.export.run_data import find_calibration, find_validation_set, run_config

    artifact = resolve(str(run))
    tokenizer = open_model(artifact).tokenizer
    config = run_config(artifact)
    validation = find_validation_set(artifact, tokenizer, None, None).prepared.examples
    rows = find_calibration(artifact, tokenizer, None, Settings(samples=99)).rows
    training = prepare(config.data, config.data.train, tokenizer).examples
    assert [row.tolist() for row in rows] == [training[i][0].tolist() for i in range(24)]
    unseen = {tuple(validation[i][0]) for i in range(len(validation))}
    assert not unseen & {tuple(row) for row in rows}
    # The same where the run splits its validation set off the training data.
    split = config.data.model_copy(update={"eval": None, "eval_fraction": 0.25})
    fraction = config.model_copy(update={"data": split})
    monkeypatch.setattr(run_data, "run_config", lambda _artifact: fraction)
    validation = find_validation_set(artifact, tokenizer, None, None).prepared.examples
    rows = find_calibration(artifact, tokenizer, None, Settings(samples=99)).rows
    assert (len(validation), len(rows)) == (6, 18)
    unseen = {tuple(validation[i][0]) for i in range(len(validation))}
    assert not unseen & {tuple(row) for row in rows}


def test_stdout_is_left_alone(made, tmp_path) -> None:
    program = (
        "import sys; from pathlib import Path; from intel_ft.export.export import export; "
        "export(sys.argv[1], Path(sys.argv[2]), 'int8')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(made.base), str(tmp_path / "ir")],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b""
    assert b"TracerWarning" not in done.stderr


def test_refusals(made, tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="already an OpenVINO model"):
        export(str(made.root / "int8"), tmp_path / "ir", "int8")
    # bf16 holds 1e5, fp16 does not.
    broken = shutil.copytree(made.base, tmp_path / "beyond")
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, :] = 1e5
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"down_proj.weight .* 9.98e\+04, .*fp16.*65504"):
        export(str(broken), tmp_path / "ir", "fp16")
    monkeypatch.setitem(sys.modules, "openvino_tokenizers", None)
    with pytest.raises(EnvironmentProblem, match=r"openvino_tokenizers.*intel_ft\[openvino\]"):
        export(str(made.base), tmp_path / "ir", "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beyond"]


def test_an_ir_teaches_what_its_model_would(made) -> None:
    settings = ModelConfig(name_or_path=str(made.base), dtype="float32")
    model, why_not = load_for_packing(settings, torch.float32)
    assert why_not is None
    student = load_for_packing(settings, torch.float32)[0]
    with torch.no_grad():
        for weight in student.parameters():
            weight.mul_(1.3)
    method = MethodConfig(name="distill", teacher="x", teacher_weight=1.0)
    tokenizer = load_tokenizer(settings)
    size, examples = len(tokenizer), make_examples(tokenizer)
    row = build_row(examples, np.array([2, 0, 1]))
    expected = Teacher(method, model, size).loss_sum(student, row, packed=True)
    teacher = IRTeacher(made.root / "fp16")
    loss = Teacher(method, teacher, size).loss_sum(student, row, packed=True)
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    swapped = build_row(examples, np.array([1, 2, 0]))
    other = Teacher(method, teacher, size).loss_sum(student, swapped, packed=True)
    assert other.item() == pytest.approx(loss.item(), rel=1e-3)  # segments do not see each other


def test_training_towards_an_ir(made, tmp_path) -> None:
    rows = [{"instruction": f"Name {n}.", "output": f"It is {n}."} for n in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build(
        {
            "model": {"name_or_path": str(made.base), "dtype": "float32"},
            "data": {"train": str(tmp_path / "train.jsonl")},
            "method": {"name": "distill", "teacher": str(made.root / "fp16"), "r": 4},
            "train": {"max_steps": 2, "global_batch_size": 4, "report_to": []},
            "output": {"directory": tmp_path / "out"},
        },
        "a test",
    )
    assert train(config).steps == 2
    (made.root / "fp16" / "openvino_model.xml").rename(tmp_path / "moved.xml")
    try:
        (made.root / "fp16" / "openvino_model.xml").write_text("no IR")
        with pytest.raises(UserError, match=r"method\.teacher: OpenVINO cannot load"):
            train(config, overwrite=True)
    finally:
        (tmp_path / "moved.xml").rename(made.root / "fp16" / "openvino_model.xml")


def test_a_small_model_drafts_for_a_large_one(made) -> None:
    example = Path(__file__).resolve().parents[3] / "examples/speculative.py"
    folders = [made.root / "fp16", made.root / "int8"]
    done = subprocess.run(
        [sys.executable, example, *folders, "def sum_size(values):"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the same answer" in done.stdout
