"""Recovery: gradients through the rounding, the IR that is left, and going on after a kill."""

import json
import signal
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from support.export_fixtures import kill_recovery_after, make_examples
from support.harness import run

if find_spec("openvino_genai") is None or find_spec("optimum.intel") is None:
    pytest.skip("needs the openvino extra", allow_module_level=True)

from intel_ft.artifacts.ir_weights import CompressedTensor, dequantize, pack, read_compressed
from intel_ft.artifacts.resolve import resolve
from intel_ft.decisions import Decision
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.export import recover as module
from intel_ft.export.export import export
from intel_ft.export.fake_quantize import FakeQuantized, original, quantize_in_place
from intel_ft.export.recover import _chunks as chunks
from intel_ft.export.recover import recover
from intel_ft.export.run_data import find_training
from intel_ft.models.load import load_tokenizer
from intel_ft.quantization import Settings
from intel_ft.runtimes.openvino_lm import OpenVINOLM
from intel_ft.runtimes.torch_lm import load_torch

PLAIN = {"group_size": 64, "awq": False, "scale_estimation": False}
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def tensor(signed: bool) -> CompressedTensor:
    scales = np.full((2, 2), 0.25, dtype=np.float16)
    zeros = None if signed else np.full((2, 2), 7, dtype=np.uint8)
    codes = pack(np.zeros((2, 8), dtype=np.int16))
    return CompressedTensor(codes, scales, zeros, (2, 8), 4, signed, (0, 0, None))


@pytest.mark.parametrize("signed", [True, False])
def test_rounding_and_its_gradients(signed) -> None:
    layer = FakeQuantized(tensor(signed), rank=2)
    weight = torch.tensor([[0.1, 0.2, -0.3, 0.4, 9.0, -9.0, 0.0, 0.13]] * 2)
    values = layer.values(weight)
    low, high = (-8, 7) if signed else (-7, 8)
    wanted = (weight / 0.25).round().clamp(low, high) * 0.25
    assert values.equal(wanted)
    codes, scales, zeros = layer.stored(weight)
    shift = 0 if signed else 7
    assert np.array_equal((codes - shift) * 0.25, wanted.numpy())
    assert scales.dtype == np.float32 and (zeros is None) == signed
    layer.start_step(weight)
    layer.active = True
    layer(weight).sum().backward()
    layer.finish_step(weight)
    # d/ds of (q - z) s is q - z - w / s inside the range and q - z at its ends; log s adds s.
    inside = (weight / 0.25).abs() < 7
    slope = torch.where(inside, wanted / 0.25 - weight / 0.25, wanted / 0.25)
    expected = (0.25 * slope).view(2, 2, 4).sum(-1)
    torch.testing.assert_close(layer.log_scale.grad, expected)
    # B learns through A where the weight is inside the range.
    torch.testing.assert_close(layer.b.grad, inside.float() @ layer.a.detach().T)


@pytest.fixture(scope="module")
def made(page_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("recover")
    export(str(page_base), root / "int4", "int4", settings=Settings(**PLAIN))
    tokenizer = load_tokenizer(resolve_config(page_base))
    return page_base, root / "int4", make_examples(tokenizer)


def resolve_config(folder: Path):
    from intel_ft.config_sections import ModelConfig

    return ModelConfig(name_or_path=str(folder))


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def network(base: Path):
    return load_torch(resolve(str(base)), dtype="float32").model


def divergence(base: Path, ir: Path, examples) -> float:
    """Mean KL(torch || IR) in float32 over the examples' supervised positions."""
    lm = load_torch(resolve(str(base)), dtype="float32")
    other = OpenVINOLM(ir, lm.tokenizer, F32)
    total, count = 0.0, 0
    for index in range(len(examples)):
        tokens, supervised = examples[index]
        at = np.flatnonzero(supervised) - 1
        p, q = (
            torch.log_softmax(torch.from_numpy(one.logits(tokens, at)).double(), -1)
            for one in (lm, other)
        )
        total += float((p.exp() * (p - q)).sum())
        count += len(at)
    return total / count


def test_recovered_weights_are_closer_and_of_the_same_form(made, tmp_path) -> None:
    base, int4, examples = made
    before = divergence(base, int4, examples)
    ir = copy(int4, tmp_path / "ir")
    settings = Settings(recover_steps=20, recover_rank=4, recover_rate=1e-2)
    recovery = recover(network(base), ir, examples, settings, tmp_path / "state.pt")
    assert recovery.steps == 20 and recovery.kl_end < recovery.kl_start
    after = divergence(base, ir, examples)
    assert after < 0.6 * before
    assert after == pytest.approx(recovery.kl_end, rel=0.5)
    sizes = [(path.name, path.stat().st_size) for path in sorted(int4.iterdir())]
    assert [(path.name, path.stat().st_size) for path in sorted(ir.iterdir())] == sizes
    assert (ir / "openvino_model.xml").read_bytes() == (int4 / "openvino_model.xml").read_bytes()
    old, new = read_compressed(int4), read_compressed(ir)
    for name, weight in old.items():
        changed = not np.array_equal(dequantize(weight), dequantize(new[name]))
        assert changed == (weight.bits == 4), name
    assert not (tmp_path / "state.pt").exists()


def test_rows_computed_together_have_the_gradients_of_single_rows(made, monkeypatch) -> None:
    base, int4, examples = made
    found = []
    for size in (0, 10**6):
        monkeypatch.setattr(module, "_chunks", lambda rows, _, size=size: chunks(rows, size))
        model = network(base).requires_grad_(False)
        trained = quantize_in_place(model, read_compressed(int4), rank=0)
        for name, layer in trained.items():
            layer.start_step(original(model, name))
        total, count = module._step(model, examples, list(range(len(examples))), 512)
        for name, layer in trained.items():
            layer.finish_step(original(model, name))
        found.append((total, count, [p.grad for one in trained.values() for p in one.parameters()]))
    (total, count, wanted), (padded, same, gradients) = found
    assert count == same and padded == pytest.approx(total, rel=1e-4)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_a_gpu_without_enough_memory_is_not_used(monkeypatch) -> None:
    gpu = Decision("backend.name", "cuda", "it is there")
    monkeypatch.setattr("intel_ft.backends.choice.choose_by_name", lambda name: gpu)
    monkeypatch.setattr("intel_ft.host.devices.gpu_name", lambda: "GPU")
    network = torch.nn.Linear(1024, 1024)
    chosen = []
    for free in (8 * 2**30, 2**30):
        monkeypatch.setattr("intel_ft.host.devices.available_bytes", lambda device, free=free: free)
        chosen.append(module._device(network, {"one": torch.nn.Linear(8, 8)}))
    assert [one.value for one in chosen] == ["cuda", "cpu"]
    assert "too little memory" in chosen[1].reason


def test_a_gpu_that_is_full_is_named(made, tmp_path, monkeypatch) -> None:
    base, int4, examples = made

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_step", full)
    ir = copy(int4, tmp_path / "ir")
    with pytest.raises(EnvironmentProblem, match="lower sample_tokens, or set CUDA_VISIBLE"):
        recover(network(base), ir, examples, Settings(), tmp_path / "state.pt")


def test_a_killed_recovery_continues(made, tmp_path, monkeypatch) -> None:
    base, int4, _ = made
    calibration = tmp_path / "page.jsonl"
    calibration.write_text(
        "".join(
            json.dumps({"prompt": f"def {name}", "completion": "_size(values):"}) + "\n"
            for name in ("sum", "min", "max", "any", "all", "len", "set", "abs", "dir", "hex")
        )
    )
    settings = {"recover_steps": 4, "recover_minutes": 1e6, **PLAIN}
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    arguments = ("export", base, "-o", "ir", "--format", "int4", "--recover", *pairs)
    killed = run(
        *(*arguments, "--calibration", calibration),
        cwd=tmp_path,
        before=partial(kill_recovery_after, 2),
    )
    assert killed.code == -signal.SIGKILL, killed.err
    assert not (tmp_path / "ir").exists()
    assert (tmp_path / ".ir.export" / "recovery" / "int4-recovered.pt").is_file()
    chosen, batch, steps = Settings(**settings), module._batch, []
    monkeypatch.setattr(module, "_batch", lambda *at: steps.append(at[1]) or batch(*at))
    export(
        *(str(base), tmp_path / "ir", "int4"),
        settings=chosen,
        calibration=str(calibration),
        recover=True,
    )
    assert steps == [2, 3]
    whole = copy(int4, tmp_path / "whole")
    examples = find_training(
        resolve(str(base)), load_tokenizer(resolve_config(base)), str(calibration)
    )
    recover(network(base), whole, examples, chosen, tmp_path / "whole.pt")
    first, again = read_compressed(whole), read_compressed(tmp_path / "ir")
    for name, weight in first.items():
        np.testing.assert_allclose(dequantize(weight), dequantize(again[name]), atol=1e-6)


def test_what_recovery_refuses(made, page_base, tmp_path) -> None:
    with pytest.raises(UserError, match="name some with --calibration"):
        export(str(page_base), tmp_path / "ir", "int4", recover=True)
    with pytest.raises(UserError, match="--recover tunes 4-bit weights"):
        export(str(page_base), tmp_path / "ir", "int8", recover=True)
    assert not list(tmp_path.iterdir())
