"""Every method resumes to the same bytes, trains alike on two ranks, and leaves a usable result."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.harness import MODEL, metrics, run, shortest_examples, start, start_ranks, write_config

_TRAIN = {
    "max_steps": 4,
    "global_batch_size": 3,
    "save_steps": 2,
    "eval_steps": 2,
    "max_tokens_per_row": 256,
    "learning_rate": 5e-4,
    "report_to": [],
}
METHODS: dict[str, dict[str, Any]] = {
    "pissa": {"init": "pissa", "use_rslora": True, "dropout": 0.1, "modules_to_save": ["norm"]},
    "dora": {"use_dora": True, "lora_plus_ratio": 4},
    "qlora": {"name": "qlora", "init": "olora"},
    "full": {"name": "distill", "teacher": str(MODEL), "student": "full"},
}


@dataclass(frozen=True)
class Done:
    """A run that nothing disturbed, and where its result is."""

    name: str
    folder: Path

    @property
    def result(self) -> str:
        return "model" if self.name == "full" else "adapter"

    def weights(self, folder: Path | None = None) -> Path:
        file = "model" if self.name == "full" else "adapter_model"
        return (folder or self.folder) / "out" / self.result / f"{file}.safetensors"


def prepared(folder: Path, name: str, **train) -> Path:
    if name == "qlora":
        pytest.importorskip("bitsandbytes")
    folder.mkdir()
    shortest_examples(folder / "train.jsonl", 0, 24)
    shortest_examples(folder / "eval.jsonl", 24, 30)
    write_config(
        folder / "config.yaml",
        model={"name_or_path": str(MODEL), "dtype": "bfloat16"},
        data={"eval": "eval.jsonl", "max_length": 256},
        method={"r": 16 if name == "full" else 4} | METHODS[name],
        train=_TRAIN | train,
    )
    return folder


@pytest.fixture(scope="module", params=list(METHODS))
def done(request, tmp_path_factory) -> Done:
    folder = prepared(tmp_path_factory.mktemp("methods") / "run", request.param)
    result = run("train", "config.yaml", cwd=folder)
    assert result.code == 0, result.err
    return Done(request.param, folder)


def losses(folder: Path) -> list[float]:
    return [line.get("loss", line.get("eval_loss")) for line in metrics(folder / "out")]


def test_resumed_it_is_the_same_run(done, tmp_path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(done.folder, folder)
    shutil.rmtree(folder / "out" / done.result)
    shutil.rmtree(folder / "out/checkpoint-4")
    result = run("train", "config.yaml", "--resume", cwd=folder)
    assert result.code == 0, result.err
    assert "resuming from out/checkpoint-2" in result.err
    assert done.weights(folder).read_bytes() == done.weights().read_bytes()
    assert losses(folder) == losses(done.folder)


def test_another_method_does_not_go_on(done) -> None:
    shutil.copytree(done.folder / "out", other := done.folder / "other")
    shutil.rmtree(other / done.result)
    options = ("--resume", "output.directory=other", "method.name=lora")
    if done.name == "dora":
        options = (*options[:2], "method.lora_plus_ratio=1")
    reset = {"student": "lora", "teacher": "null", "init": "default"}
    changes = [f"method.{key}={value}" for key, value in reset.items()]
    result = run("train", "config.yaml", *options, *changes, cwd=done.folder)
    shutil.rmtree(other)
    assert result.code == 2, result.err
    assert " was " in result.last_line and "method." in result.last_line


def test_what_it_leaves_is_used_by_every_verb(done, tmp_path) -> None:
    result = run("eval", "out", "--data", "eval.jsonl", "--json", cwd=done.folder)
    assert result.code == 0, result.err
    at_the_end = min(
        line["eval_loss"] for line in metrics(done.folder / "out") if "eval_loss" in line
    )
    assert json.loads(result.out)["loss"] == pytest.approx(
        at_the_end,
        rel=0.1 if done.name == "qlora" else 0.02,  # while it trains, on its NF4 base
    )
    result = run("merge", "out", "--output", tmp_path / "merged", cwd=done.folder, seconds=200)
    if done.result == "model":
        assert result.code == 2
        assert "no adapter to merge" in result.last_line
        return
    assert result.code == 0, result.err
    assert (tmp_path / "merged/model.safetensors").is_file()


@pytest.mark.parametrize("name", ["pissa", "full"])
def test_two_ranks_are_one(name, tmp_path) -> None:
    one, two = (prepared(tmp_path / folder, name) for folder in ("one", "two"))
    options = ("model.dtype=float32", "method.dropout=0")
    alone = start("train", "config.yaml", *options, cwd=one)
    ranks = start_ranks(2, "train", "config.yaml", *options, "backend.collective=gloo", cwd=two)
    for running in (alone, *ranks):
        result = running.wait()
        assert result.code == 0, result.err
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    found, wanted = (load_file(Done(name, folder).weights()) for folder in (two, one))
    for key, weight in wanted.items():
        assert (found[key].float() - weight.float()).norm() <= 1e-3 * weight.float().norm(), key
