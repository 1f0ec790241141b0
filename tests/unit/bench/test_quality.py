"""`bench quality`: the report, the reference trainer, the settings of both."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from support.hosts import wait

from intel_ft import subprocess_json
from intel_ft.assets import MODEL, resolve
from intel_ft.bench import quality as module
from intel_ft.bench import reference_trainer
from intel_ft.bench.quality import bench_quality
from intel_ft.bench.quality_worker import settings
from intel_ft.bench.tables import quality_table
from intel_ft.distributed.launch.commands import Command, command
from intel_ft.distributed.launch.job_spec import Job
from intel_ft.errors import IntelFTError, UserError
from intel_ft.templates.examples import Examples

BASE = Path(resolve(MODEL))


def _examples(count=6, seed=0):
    random = np.random.default_rng(seed)
    lengths = random.integers(6, 20, count)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = random.integers(5, 4000, offsets[-1], dtype=np.int32)
    supervised = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) >= 3
    return Examples(tokens, supervised, offsets)


def _play(monkeypatch, losses):
    """Answer each process with its contender's next loss; returns the processes' arguments."""
    started = []

    def measured(name, _, arguments, environment):
        contender = name.removeprefix("bench ")
        started.append((*arguments, environment.get("OMP_NUM_THREADS")))
        speed = {} if contender == "base" else {"tokens_per_s": 10.0 * len(started)}
        return {"heldout_loss": losses[contender].pop(0), "threads": 1, **speed}

    monkeypatch.setattr(module.subprocess_json, "run_module", measured)
    return started


def test_contenders_take_turns_and_means_are_compared(monkeypatch):
    started = _play(monkeypatch, {"base": [3.0], "plain": [1.0, 1.2], "bf16": [1.1, 1.21]})
    report = bench_quality(["plain", "bf16", "plain"], 2, 7, 1)
    assert started == [
        ("base", "0", "7", "1", "1"),
        *((name, str(seed), "7", "1", "1") for seed in (0, 1) for name in ("plain", "bf16")),
    ]
    ours = report["sides"]["bf16"]
    assert report["base"] == {"heldout_loss": 3.0}
    assert ours["heldout_loss"] == pytest.approx(1.155)
    assert ours["to_plain_percent"] == pytest.approx(5.0)
    assert ours["tokens_per_s"] == (30 + 50) / 2
    assert [run["seed"] for run in ours["runs"]] == [0, 1]
    table = quality_table(report)
    assert table.columns == (
        "7 steps",
        "validation loss",
        "vs. plain, %",
        "token/s",
        "seed 0",
        "seed 1",
    )
    assert table.rows == [
        ("base", "3.0000", "", "", "", ""),
        ("plain", "1.1000", "0.00", "30", "1.0000", "1.2000"),
        ("bf16", "1.1550", "+5.00", "40", "1.1000", "1.2100"),
    ]


def test_without_the_reference_there_is_no_difference(monkeypatch):
    _play(monkeypatch, {"base": [3.0], "int8": [1.0]})
    report = bench_quality(["int8"], 1, 1)
    assert report["sides"]["int8"]["to_plain_percent"] is None
    assert quality_table(report).rows[1][2] == ""


def test_mistakes_are_reported_before_anything_runs(monkeypatch):
    _play(monkeypatch, {})
    for arguments in ((["fp64"], 1, 1), ([], 1, 1), (["plain"], 0, 1), (["plain"], 1, 1, 10**6)):
        with pytest.raises(UserError):
            bench_quality(*arguments)


def test_contenders_differ_in_the_base_alone(tmp_path):
    plain, bf16, int8 = (settings(s, 3, 9, 2, tmp_path) for s in module.CONTENDERS)
    assert plain == bf16
    assert (int8.model.base_dtype, bf16.model.base_dtype) == ("int8", "auto")
    assert int8.train == bf16.train and (bf16.train.seed, bf16.train.max_steps) == (3, 9)
    assert bf16.data.eval is None and bf16.backend.threads == 2


def test_the_reference_loss_is_that_of_transformers():
    examples, model = _examples(), reference_trainer.load(BASE).eval()
    total = 0.0
    for index in range(len(examples)):
        tokens, supervised = examples[index]
        ids = torch.from_numpy(tokens).long()[None]
        labels = torch.where(torch.from_numpy(supervised)[None], ids, -100)
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * int(supervised.sum())
    mean = total / int(examples.supervised.sum())
    assert reference_trainer.validation_loss(BASE, None, examples) == pytest.approx(mean, rel=2e-3)


def test_plain_training_learns_its_examples_and_repeats(tmp_path):
    examples, config = _examples(), settings("plain", 1, 4, None, tmp_path)
    tokens, seconds = reference_trainer.train(config, BASE, examples, tmp_path / "adapter")
    assert tokens == 4 * len(examples.tokens) and seconds > 0
    reference_trainer.train(config, BASE, examples, tmp_path / "again")
    losses = [
        reference_trainer.validation_loss(BASE, tmp_path / name, examples)
        for name in ("adapter", "again")
    ]
    before = reference_trainer.validation_loss(BASE, None, examples)
    assert losses[0] < before - 0.05 and math.isclose(*losses, rel_tol=1e-3)


def test_a_process_that_fails_names_its_contender_and_reason():
    with pytest.raises(IntelFTError, match=r"bench ours: .*no_such_module"):
        subprocess_json.run_module(
            "bench ours", "no_such_module", [], subprocess_json.thread_environment(None)
        )


@pytest.mark.parametrize("via", ["mpirun", "torchrun"])
def test_of_ranks_that_fail_the_error_is_named_and_not_what_the_launcher_says_of_it(via, tmp_path):
    (tmp_path / "failing.py").write_text("raise KeyError('workload')\n")
    start = command(Job((), (), 2, "127.0.0.1:0"), via)
    environment = {**os.environ, **start.environment, "PYTHONPATH": str(tmp_path)}
    with pytest.raises(IntelFTError, match="bench ours: KeyError: 'workload'"):
        subprocess_json.run_module("bench ours", "failing", [], environment, start.arguments)


@pytest.mark.parametrize("via", [None, "mpirun", "torchrun"])
def test_what_a_killed_benchmark_measures_ends_with_it(via, tmp_path):
    start = command(Job((), (), 2, "127.0.0.1:0"), via) if via else Command((), {}, "none")
    (tmp_path / "idle.py").write_text(
        "import os, pathlib, time\n"
        "time.sleep(1)\n"  # until its launcher waits for it
        "pathlib.Path(__file__).with_name(f'{os.getpid()}.pid').touch()\n"
        "time.sleep(600)\n"
    )
    bench = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import os, sys; from intel_ft import subprocess_json; "
            "subprocess_json.run_module('ours', 'idle', [], os.environ, sys.argv[1:])",
            *start.arguments,
        ],
        env={**os.environ, **start.environment, "PYTHONPATH": str(tmp_path)},
        start_new_session=True,
    )
    count = 2 if via else 1
    wait(lambda: bench.poll() is not None or len(list(tmp_path.glob("*.pid"))) == count, 240)
    processes = [int(path.stem) for path in tmp_path.glob("*.pid")]
    bench.kill()
    assert bench.wait() == -signal.SIGKILL
    wait(lambda: not any(map(_runs, processes)), 120)


def _runs(pid: int) -> bool:
    """Whether the process runs; one that this process has adopted and not awaited has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
