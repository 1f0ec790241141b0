"""What `plan --measure` times on this machine, and the first answer without it."""

import math
import subprocess
from dataclasses import replace

import pytest
import torch
import transformers

from intel_ft.config import Config, build
from intel_ft.errors import UserError
from intel_ft.models import gemm_rate
from intel_ft.planner import hardware, probe
from intel_ft.planner.hardware import Machine
from intel_ft.planner.inputs import Cluster, inputs_of
from intel_ft.planner.lengths import AssumedData
from intel_ft.planner.plan import plan
from intel_ft.planner.probe import shortened
from intel_ft.planner.text import lines
from intel_ft.training.memory import RUNTIME

GIB = 2**30
MACHINE = Machine("a test's", 1, torch.bfloat16, 4e11, 8e11, 4e10, "made up")


def config(**sections: dict[str, object]) -> Config:
    values: dict[str, dict[str, object]] = {
        "model": {"name_or_path": "tiny-python-llama"},
        "data": {"train": "docstring-to-python/train.jsonl"},
        "output": {"directory": "out"},
    }
    return build(values | sections, "test")


@pytest.fixture
def made_up_rates(monkeypatch) -> None:
    """GEMMs are not measured, which has tests of its own."""
    monkeypatch.setattr(hardware, "measured", lambda *_, **__: MACHINE)


@pytest.mark.usefixtures("made_up_rates")
def test_the_first_layers_are_timed_here(monkeypatch) -> None:
    monkeypatch.setattr(probe, "_SECONDS", 0.03)
    settings = config(train={"max_steps": 2, "global_batch_size": 8})
    found = inputs_of(settings, Cluster(), AssumedData(64, 128), time_layers=True)
    assert found.machine.slowdown >= 0.1 and found.machine.slowdown != 1.0  # 1: none was timed
    assert 0.3 < found.machine.runtime / GIB < 1.5
    report, as_counted = (
        plan(replace(found, machine=replace(found.machine, slowdown=times)))["step"]["parts"]
        for times in (found.machine.slowdown, 1.0)
    )
    for part in ("linear_layers", "attention", "memory"):
        assert report[part] == pytest.approx(found.machine.slowdown * as_counted[part])
    assert report["fixed"] == as_counted["fixed"]


@pytest.mark.usefixtures("made_up_rates")
def test_the_first_answer_starts_no_process(monkeypatch) -> None:
    """It is the roofline's, of a few seconds of GEMMs; `--measure` asks for the layers' time."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    examples = AssumedData(64, 128)
    report = plan(inputs_of(config(train={"max_steps": 2}), Cluster(), examples))
    assert report["cluster"]["slowdown"] == 1
    assert any("--measure" in line for line in lines(report))
    elsewhere = plan(inputs_of(config(), Cluster(cpu="8480+", memory=64 * GIB), examples))
    assert not any("--measure" in line for line in lines(elsewhere))


@pytest.mark.parametrize(
    ("cluster", "changes"),
    [
        (Cluster(cpu="8480+", memory=GIB), {}),
        (Cluster(gpu="T4"), {}),
        (Cluster(), {"backend": {"name": "ipex"}}),
    ],
)
def test_layers_of_another_machine_cannot_be_timed_here(cluster, changes) -> None:
    with pytest.raises(UserError, match="--measure"):
        inputs_of(config(**changes), cluster, None, time_layers=True)


def test_a_large_gemm_is_measured_in_part() -> None:
    """A 7B model's GEMMs took 45 s of CPU, where these take 3 s."""
    gemms = [gemm_rate.Gemm(2048, 4096, 11008), gemm_rate.Gemm(2048, 11008, 4096)]
    assert [gemm_rate.part_of(g, 5e9, 2048).columns for g in gemms] == [2048, 2048]
    assert all(gemm_rate.part_of(g, 5e9, 2048).flops < 1.2e10 for g in gemms)
    assert gemm_rate.part_of(gemms[0], math.inf, 8192).flops == 2.0 * 2048 * 4096 * 8192
    small = gemm_rate.Gemm(512, 256, 256)
    assert gemm_rate.part_of(small, 5e9, 2048) == small


def test_what_is_timed_is_the_model_with_fewer_layers() -> None:
    qwen = transformers.Qwen3Config(
        num_hidden_layers=6, hidden_size=320, layer_types=["full_attention"] * 6
    )
    short = shortened(qwen, 2)
    assert (short.num_hidden_layers, len(short.layer_types), short.hidden_size) == (2, 2, 320)
    assert qwen.num_hidden_layers == 6


@pytest.mark.usefixtures("made_up_rates")
def test_where_no_layer_can_be_timed_the_roofline_stands(monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(probe.logger, "warning", lambda text, *v: said.append(text % v))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # no other Python starts with it
    settings = config(train={"max_steps": 2})
    found = inputs_of(settings, Cluster(), AssumedData(64, 128), time_layers=True).machine
    assert (found.slowdown, found.runtime) == (1.0, RUNTIME)
    assert len(said) == 1
    assert "could not be timed" in said[0]
