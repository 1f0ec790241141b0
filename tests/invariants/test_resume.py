"""A run that is killed, stopped or damaged and then resumed ends as if it had not been.

The adapter has the same bytes, the losses are equal, each step is logged once, and no file is left
half-written.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.harness import (
    contents,
    installed,
    metrics,
    run,
    shortest_examples,
    start,
    write_config,
)

from intel_ft.distributed.folder_lock import LOCK
from intel_ft.files import damage

KILLS = 10
# Losses, gradients and the learning rate must be equal; speed and memory are the machine's.
_COMPARED = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "supervised_tokens", "eval_loss")
_TRAIN = {
    "max_steps": 12,
    "global_batch_size": 4,
    "save_steps": 2,
    "eval_steps": 2,
    "keep_checkpoints": 3,
    "max_tokens_per_row": 256,
    "report_to": [],
}


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed: the folder it started in, its adapter and its metrics."""

    folder: Path
    adapter: bytes
    steps: list[dict[str, Any]]

    def fresh(self, folder: Path) -> Path:
        """A folder from which the same run can be started again; its out/ is yet to be made."""
        folder.mkdir(parents=True)
        for name in ("train.jsonl", "eval.jsonl", "config.yaml"):
            shutil.copy(self.folder / name, folder / name)
        return folder

    def unfinished(self, folder: Path) -> Path:
        """The same with an out/ that lacks only the final adapter."""
        shutil.copytree(self.folder / "out", self.fresh(folder) / "out")
        shutil.rmtree(folder / "out/adapter")
        return folder

    def assert_same(self, folder: Path) -> None:
        out = folder / "out"
        assert (out / "adapter/adapter_model.safetensors").read_bytes() == self.adapter
        assert _compared(out) == self.steps
        left = [path for path in out.rglob(".*") if path.name != LOCK]  # which a kill leaves
        assert not left, "half-written files were left"


def _compared(out: Path) -> list[dict[str, Any]]:
    return [{key: line[key] for key in _COMPARED if key in line} for line in metrics(out)]


def _reference(folder: Path, **sections: dict[str, Any]) -> Reference:
    data = {"eval": "eval.jsonl", "max_length": 256}
    write_config(folder / "config.yaml", data=data, **sections)
    result = installed("train", "config.yaml", cwd=folder)
    assert result.code == 0, result.err
    adapter = (folder / "out/adapter/adapter_model.safetensors").read_bytes()
    return Reference(folder, adapter, _compared(folder / "out"))


@pytest.fixture(scope="module")
def dropout(tmp_path_factory) -> Reference:
    """12 steps with dropout, so that the adapter depends on every random number drawn."""
    folder = tmp_path_factory.mktemp("dropout")
    shortest_examples(folder / "train.jsonl", 0, 24)
    shortest_examples(folder / "eval.jsonl", 24, 30)
    reference = _reference(folder, method={"dropout": 0.1}, train=_TRAIN)
    assert [line["step"] for line in reference.steps if "loss" in line] == list(range(1, 13))
    return reference


@pytest.fixture(scope="module")
def early(tmp_path_factory) -> Reference:
    """A run that does ever worse on its evaluation: it keeps an early adapter and stops early."""
    folder = tmp_path_factory.mktemp("early")
    shortest_examples(folder / "train.jsonl", 0, 24)
    backwards = shortest_examples(folder / "eval.jsonl", 24, 30)
    rows = [json.loads(line) for line in backwards.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps(row | {"output": row["output"][::-1]}) + "\n" for row in rows]
    backwards.write_text("".join(lines), encoding="utf-8")
    train = _TRAIN | {"max_steps": 40, "early_stopping": 3, "learning_rate": 3e-3}
    reference = _reference(folder, train=train)
    losses = [line["eval_loss"] for line in reference.steps if "eval_loss" in line]
    assert 4 <= len(losses) < 20, f"meant to stop early, but not at once: {losses}"
    assert losses[-1] > min(losses)
    return reference


def _logged(lines: int) -> Callable[[Path], bool]:
    def reached(out: Path) -> bool:
        path = out / "metrics.jsonl"
        return path.exists() and path.read_bytes().count(b"\n") >= lines

    return reached


@dataclass(frozen=True)
class Kill:
    """SIGKILL `delay` seconds after `condition(out)` holds."""

    condition: Callable[[Path], bool]
    delay: float = 0.0


def _kills(seed: int) -> list[Kill]:
    """The kills of run number `seed`: at any moment, or while something is being written.

    Every fourth run is killed again after it was resumed.
    """
    dice = random.Random(seed)

    def appears(name: str, delay: float = 0.0) -> Kill:
        return Kill(lambda out: (out / name).exists(), delay)

    partial = f".checkpoint-{dice.choice((2, 4, 6, 8))}.partial"
    kills = [
        (
            Kill(_logged(1), dice.uniform(0.0, 2.5)),
            appears(partial),
            Kill(_logged(1), dice.uniform(0.0, 2.5)),
            appears(f"{partial}/optimizer.pt"),
            appears(partial, delay=dice.uniform(0.0, 0.02)),
            Kill(_logged(1), dice.uniform(0.0, 2.5)),
            appears(f"{partial}/manifest.json"),
            appears(".checkpoint-2.removed"),
            Kill(_logged(1), dice.uniform(0.0, 0.3)),
            appears(".adapter.partial"),
        )[seed % 10]
    ]
    if seed % 4 == 3:
        kills.append(Kill(_logged(1), dice.uniform(0.0, 1.0)))
    return kills


def _kill_and_resume(reference: Reference, folder: Path, seed: int) -> tuple[int, int]:
    """Do it, compare, and return how many kills hit, and how many of them inside a checkpoint."""
    out = reference.fresh(folder) / "out"
    hit = inside = 0
    for kill in _kills(seed):
        running = start("train", "config.yaml", *["--resume"][: out.exists()], cwd=folder)
        if running.wait_until(lambda kill=kill: kill.condition(out)):
            time.sleep(kill.delay)
            running.kill(signal.SIGKILL)
        result = running.wait()
        assert result.code in {0, -signal.SIGKILL}, f"run {seed}: {result.err}"
        hit += result.code != 0
        inside += any(out.glob(".checkpoint-*.partial"))
        if (out / "adapter").is_dir():
            break
    else:
        result = run("train", "config.yaml", "--resume", cwd=folder)
        assert result.code == 0, f"run {seed}: {result.err}"
    reference.assert_same(folder)
    return hit, inside


def test_killed_at_any_moment_and_resumed(dropout, early, tmp_path):
    def one(seed: int) -> tuple[int, int]:
        reference = early if seed % 3 == 2 else dropout
        return _kill_and_resume(reference, tmp_path / str(seed), seed)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(one, range(KILLS)))
    assert sum(hit for hit, _ in done) >= KILLS, done
    assert sum(inside for _, inside in done) >= 3, done


def test_a_forked_run_is_an_installed_one(dropout, tmp_path):
    folder = dropout.fresh(tmp_path / "run")
    assert run("train", "config.yaml", cwd=folder).code == 0
    dropout.assert_same(folder)


@pytest.mark.parametrize("reference", ["dropout", "early"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_this_step_and_stops(number, reference, request, tmp_path):
    reference = request.getfixturevalue(reference)
    folder = reference.fresh(tmp_path / "run")
    out = folder / "out"
    running = start("train", "config.yaml", cwd=folder)
    assert running.wait_until(lambda: _logged(4)(out))  # steps 1 and 2, the evaluation, step 3
    running.kill(number)
    result = running.wait()
    assert result.code == 128 + number, result.err
    step = max(line["step"] for line in metrics(out))
    assert f"checkpoint-{step} " in result.last_line and "--resume" in result.last_line
    assert "Traceback" not in result.err
    assert damage(out / f"checkpoint-{step}") is None
    assert not (out / "adapter").exists()
    result = run("train", "config.yaml", "--resume", cwd=folder)
    assert result.code == 0, result.err
    reference.assert_same(folder)


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "adapter_model.safetensors",
        "best.safetensors",
        "manifest.json",
        "optimizer.pt",
        "plan.json",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    ],
)
def test_a_flipped_byte_skips_that_checkpoint(name, dropout, tmp_path):
    folder = dropout.unfinished(tmp_path / "run")
    newest = folder / "out/checkpoint-12"
    assert {path.name for path in newest.iterdir()} >= {name}
    _flip_a_byte(newest / name)
    result = run("train", "config.yaml", "--resume", cwd=folder)
    assert result.code == 0, result.err
    skipped = [line for line in result.err.splitlines() if line.startswith("skipped ")]
    assert len(skipped) == 1 and "out/checkpoint-12: " in skipped[0]
    # With a changed digest in the manifest it looks as if the file that it is of had changed.
    assert name in skipped[0] or name == "manifest.json"
    assert "resuming from out/checkpoint-10" in result.err
    assert damage(newest) is None
    dropout.assert_same(folder)


def test_every_file_of_a_checkpoint_is_sealed(dropout):
    checkpoint = dropout.folder / "out/checkpoint-12"
    sealed = json.loads((checkpoint / "manifest.json").read_text())["sha256"]
    assert sealed.keys() | {"manifest.json"} == {path.name for path in checkpoint.iterdir()}


def test_no_whole_checkpoint_is_an_error_that_changes_nothing(dropout, tmp_path):
    folder = dropout.unfinished(tmp_path / "run")
    (folder / "out/checkpoint-8/optimizer.pt").write_bytes(b"")
    (folder / "out/checkpoint-10/scheduler.pt").unlink()
    _flip_a_byte(folder / "out/checkpoint-12/adapter_model.safetensors")
    before = contents(folder / "out")
    result = run("train", "config.yaml", "--resume", cwd=folder)
    assert result.code == 1
    assert result.last_line.startswith("error: ") and "--overwrite" in result.last_line
    for step in (8, 10, 12):
        assert f"skipped out/checkpoint-{step}: " in result.err
    assert contents(folder / "out") == before


def test_damaged_newer_checkpoints_do_not_push_out_the_whole_one(dropout, tmp_path):
    folder = dropout.unfinished(tmp_path / "run")
    out = folder / "out"
    for step in (10, 12):
        _flip_a_byte(out / f"checkpoint-{step}/optimizer.pt")
    before = len(metrics(out))
    arguments = ("train", "config.yaml", "train.keep_checkpoints=1", "--resume")
    running = start(*arguments, cwd=folder)
    assert running.wait_until(
        lambda: len((out / "metrics.jsonl").read_bytes().splitlines()) < before
    )
    running.kill(signal.SIGTERM)
    assert running.wait().code == 143
    result = run(*arguments, cwd=folder)
    assert result.code == 0, result.err
    dropout.assert_same(folder)


def test_without_a_flag_a_folder_with_checkpoints_is_left_alone(dropout, tmp_path):
    folder = dropout.unfinished(tmp_path / "run")
    before = contents(folder / "out")
    result = run("train", "config.yaml", cwd=folder)
    assert result.code == 2
    assert result.last_line.startswith("error: ")
    assert "--resume" in result.last_line and "--overwrite" in result.last_line
    assert contents(folder / "out") == before


def test_overwriting_gives_the_run_from_the_start(dropout, tmp_path):
    folder = dropout.unfinished(tmp_path / "run")
    result = run("train", "config.yaml", "--overwrite", cwd=folder)
    assert result.code == 0, result.err
    dropout.assert_same(folder)


@pytest.mark.parametrize(
    "change", ["data", "train.seed=7", "train.global_batch_size=3", "method.r=8", "method.alpha=3"]
)
def test_resuming_another_run_is_refused(change, dropout, tmp_path):
    folder = dropout.unfinished(tmp_path / "run")
    shutil.rmtree(folder / "out/checkpoint-12")
    if change == "data":
        shortest_examples(folder / "train.jsonl", 1, 25)
    overrides = [] if change == "data" else [change]
    before = contents(folder / "out")
    result = run("train", "config.yaml", *overrides, "--resume", cwd=folder)
    assert result.code == 2, result.err
    assert result.last_line.startswith("error: ") and "checkpoint-10" in result.last_line
    assert contents(folder / "out") == before


@pytest.mark.parametrize("change", ["learning_rate=0.5", "scheduler=linear", "optimizer=sgd"])
def test_a_setting_that_resuming_would_ignore_is_refused(change, dropout, tmp_path):
    folder = dropout.unfinished(tmp_path / "run")
    shutil.rmtree(folder / "out/checkpoint-12")
    before = contents(folder / "out")
    result = run("train", "config.yaml", f"train.{change}", "--resume", cwd=folder)
    assert result.code == 2, result.err
    assert f"train.{change.partition('=')[0]} was" in result.last_line
    assert contents(folder / "out") == before
