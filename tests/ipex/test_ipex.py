"""Training with IPEX against the native path: validation loss, checkpoints, ranks over oneCCL.

It needs the environment of `make setup-ipex`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.harness import metrics, run, write_config
from support.worlds import assert_same, fresh, losses

from intel_ft import assets, demo
from intel_ft.backends import ipex
from intel_ft.config import build
from intel_ft.config_sections import BackendConfig
from intel_ft.distributed.oneccl import why_not_usable
from intel_ft.host.cpu import cpu_flags
from intel_ft.models.adapter import adapter_weights, add_lora, restore_weights
from intel_ft.models.load import load_for_packing
from intel_ft.versions import installed

_WHY_NOT = ipex.mismatch(installed(ipex.PACKAGE), installed("torch"))
if _WHY_NOT is None and "avx512f" not in cpu_flags():
    _WHY_NOT = "IPEX needs AVX512 for bf16"
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=f"{_WHY_NOT}: make test-ipex")

SCRIPTS = Path(sys.executable).parent
IPEX, NATIVE = "backend.name=ipex", "backend.name=cpu"
BF16 = "model.dtype=bfloat16"


def trained(folder, *arguments):
    result = run("train", "config.yaml", BF16, *arguments, cwd=folder, seconds=300)
    assert result.code == 0, result.err
    return folder / "out", result


def unfinished(whole, folder):
    """A copy of the run `whole`, as a kill after half of its steps would leave it."""
    shutil.copytree(whole, folder)
    out = folder / "out"
    shutil.rmtree(out / "adapter")
    for late in ("checkpoint-12", "checkpoint-16"):
        shutil.rmtree(out / late)
    return folder


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """The folder of a run on the native path."""
    folder = fresh(tmp_path_factory.mktemp("native") / "run")
    trained(folder, NATIVE)
    return folder


@pytest.fixture(scope="module")
def with_ipex(tmp_path_factory):
    """The same with IPEX."""
    folder = fresh(tmp_path_factory.mktemp("ipex") / "run")
    trained(folder, IPEX)
    return folder


def test_the_demos_task_reaches_the_native_validation_loss(tmp_path):
    heldout = Path(assets.resolve(assets.HELDOUT)).read_text().splitlines()[:48]
    (tmp_path / "heldout.jsonl").write_text("\n".join(heldout))
    write_config(
        tmp_path / "config.yaml",
        data={"train": demo.TRAIN, "eval": "heldout.jsonl", "template": "tokenizer"},
        method={"r": 16, "alpha": 32},
        train={
            "max_steps": 10,
            "eval_steps": 5,
            "global_batch_size": 8,
            "learning_rate": 3e-3,
        },
    )
    validation_losses = []
    for backend, folder in ((NATIVE, "native"), (IPEX, "ipex")):
        trained(tmp_path, backend, f"output.directory={folder}")
        lines = metrics(tmp_path / folder)
        validation_losses.append([line["eval_loss"] for line in lines if "eval_loss" in line])
    of_native, of_ipex = validation_losses
    assert of_native[1] < of_native[0]  # there was something to learn
    assert of_ipex == pytest.approx(of_native, rel=0.01)


def test_a_run_records_the_notice_and_its_decisions(with_ipex):
    environment = json.loads((with_ipex / "out/environment.json").read_text())
    decisions = {d["name"]: (d["value"], d["reason"]) for d in environment["decisions"]}
    assert decisions["backend.name"] == ("ipex", "set in the config")
    assert decisions["backend.prepack"][0] == "on"
    value, reason = decisions["IPEX"]
    assert value == "archived" and "native torch 2.8.0" in reason and "GFLOP/s" in reason
    assert environment["packages"]["intel_extension_for_pytorch"] == "2.8.0"


def test_each_step_is_near_the_native_one(native, with_ipex):
    assert_same(with_ipex / "out", native / "out", tolerance=0.02, adapter=0.25)
    weights = load_file(with_ipex / "out/adapter/adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_resumed_run_is_the_run_that_was_not_stopped(with_ipex, tmp_path):
    out, _ = trained(unfinished(with_ipex, tmp_path / "again"), IPEX, "--resume")
    assert_same(out, with_ipex / "out", tolerance=1e-6, adapter=1e-6)


@pytest.mark.parametrize("backends", [(NATIVE, IPEX), (IPEX, NATIVE)], ids=" to ".join)
def test_either_backend_resumes_from_the_others_checkpoint(backends, native, with_ipex, tmp_path):
    begun, rest = (native, with_ipex) if backends[0] == NATIVE else (with_ipex, native)
    out, result = trained(unfinished(begun, tmp_path / "other"), backends[1], "--resume")
    assert "resuming from" in result.err and "checkpoint-8" in result.err
    assert losses(out) == pytest.approx(losses(rest / "out"), rel=0.02)


@pytest.mark.skipif(why_not_usable() is not None, reason=str(why_not_usable()))
def test_two_ranks_over_oneccl_take_the_same_steps(with_ipex, tmp_path):
    folder = fresh(tmp_path / "two")
    environment = os.environ | {
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "I_MPI_ROOT": sys.prefix,
        "OMP_NUM_THREADS": "1",
    }
    command = [SCRIPTS / "mpirun", "-n", "2", SCRIPTS / "intel-ft", "train", "config.yaml"]
    done = subprocess.run(
        [*command, BF16, IPEX, "backend.collective=ccl", "--ranks", "2"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(folder / "out", with_ipex / "out", tolerance=0.02, adapter=0.25)


@pytest.mark.parametrize("prepack", ["auto", False])
def test_the_optimized_model_returns_and_accepts_plain_weights(prepack):
    values = {"model": {"name_or_path": assets.MODEL}, "data": {"train": "-"}, "method": {"r": 4}}
    config = build({**values, "output": {"directory": "-"}}, "test")
    backend = ipex.select(BackendConfig(name="ipex", threads=1, prepack=prepack), config.model)
    base, _ = load_for_packing(config.model, backend.dtype)
    model = add_lora(base, config.method, "base", None)
    before = adapter_weights(model)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad])
    backend.optimize(model, optimizer)
    projection = model.get_base_model().model.layers[0].self_attn.q_proj
    replaced = type(projection.base_layer).__name__ == "_IPEXLinear"
    assert replaced == (prepack == "auto")
    assert projection.lora_A["default"].weight.dtype == torch.bfloat16
    after = adapter_weights(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    doubled = {name: weight + 1.0 for name, weight in before.items()}
    restore_weights(model, doubled)
    assert all(torch.equal(adapter_weights(model)[name], w) for name, w in doubled.items())
