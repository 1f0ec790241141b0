"""Any number of ranks is the same run: the same steps, losses and adapter.

Ranks are killed, and runs resumed on other numbers of ranks. Ranks are forked, with the variables
that torchrun sets; those to be killed over oneCCL are started by Intel MPI.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.harness import metrics, run, start_ranks
from support.worlds import assert_same, fresh, losses, wait_for

from intel_ft.distributed.oneccl import why_not_usable

SCRIPTS = Path(sys.executable).parent
FLOAT32 = "model.dtype=float32"
needs_oneccl = pytest.mark.skipif(why_not_usable() is not None, reason=str(why_not_usable()))


def started(launcher, folder, *arguments):
    """Start `intel-ft train` by a launcher's command."""
    return subprocess.Popen(
        [*launcher, SCRIPTS / "intel-ft", "train", "config.yaml", FLOAT32, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "I_MPI_ROOT": sys.prefix,
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def mpirun(ranks):
    return [SCRIPTS / "mpirun", "-n", str(ranks)]


def finished(process, code=0):
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, out + err
    return err


def one_rank(folder, *arguments):
    result = run("train", "config.yaml", FLOAT32, *arguments, cwd=folder, seconds=400)
    assert result.code == 0, result.err


def ranks_of(count, folder, *arguments):
    """Train on so many ranks over gloo; returns the messages of each."""
    ranks = start_ranks(count, "train", "config.yaml", FLOAT32, *arguments, cwd=folder)
    results = [rank.wait(400) for rank in ranks]
    assert [result.code for result in results] == [0] * count, results
    return [result.err for result in results]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run on one rank."""
    folder = fresh(tmp_path_factory.mktemp("ranks") / "one")
    one_rank(folder)
    return folder / "out"


def test_without_shared_beginnings_it_is_the_same_run(reference, tmp_path):
    steps = [line for line in metrics(reference) if "loss" in line]
    assert all(line["computed_tokens"] < line["tokens"] for line in steps)
    folder = fresh(tmp_path / "plain")
    one_rank(folder, "train.share_prefixes=false")
    assert all("computed_tokens" not in line for line in metrics(folder / "out"))
    assert_same(folder / "out", reference)


# Two ranks: tests/e2e/test_launch_walk.py, by both launchers.
@pytest.mark.parametrize(
    ("count", "collective"), [(4, "gloo"), pytest.param(3, "ccl", marks=needs_oneccl)]
)
def test_any_number_of_ranks_is_the_same_run(reference, tmp_path, count, collective):
    folder = fresh(tmp_path / "many")
    first, *others = ranks_of(count, folder, "--json", f"backend.collective={collective}")
    assert f"backend.collective = {collective}" in first
    assert not any("backend.collective" in err for err in others), "rank 0 tells of decisions"
    assert_same(folder / "out", reference)


def test_more_ranks_than_examples_in_a_step(tmp_path):
    one, three = (fresh(tmp_path / name, global_batch_size=2) for name in ("one", "three"))
    one_rank(one)
    ranks_of(3, three)
    assert_same(three / "out", one / "out")


def test_bf16_is_the_same_to_its_rounding(tmp_path):
    # Few steps: rounding grows from step to step.
    one, two = (fresh(tmp_path / name, max_steps=6) for name in ("one", "two"))
    one_rank(one, "model.dtype=bfloat16")
    ranks_of(2, two, "model.dtype=bfloat16")
    assert losses(two / "out") == pytest.approx(losses(one / "out"), rel=0.01)


def test_two_ranks_killed_go_on_as_three(reference, tmp_path):
    folder = fresh(tmp_path / "killed")
    ranks = start_ranks(2, "train", "config.yaml", FLOAT32, cwd=folder)
    ranks[1].wait_until((folder / "out/checkpoint-2").exists)
    ranks[1].kill(signal.SIGKILL)
    assert ranks[1].wait(60).code == -signal.SIGKILL
    assert ranks[0].wait(60).code not in (0, None)
    ranks_of(3, folder, "--resume")
    assert_same(folder / "out", reference)


def test_answers_kept_together_are_the_same_run_on_any_ranks_and_resumed(tmp_path):
    """Three answers to each prompt, of which a step has two: they share more, and nothing else."""
    answers = [
        {"instruction": f"Name number {n} of the list, please.", "output": f"{n} " * (k + 1)}
        for n in range(14)
        for k in range(3)
    ]

    def folder_of(name):
        folder = fresh(tmp_path / name, global_batch_size=8)
        text = "".join(json.dumps(row) + "\n" for row in answers)
        (folder / "train.jsonl").write_text(text)
        return folder

    one, random, four = map(folder_of, ("one", "random", "four"))
    one_rank(one)
    one_rank(random, "train.keep_answers_together=false")
    computed, apart = (
        sum(line.get("computed_tokens", line.get("tokens", 0)) for line in metrics(folder / "out"))
        for folder in (one, random)
    )
    assert computed < apart
    ranks = start_ranks(2, "train", "config.yaml", FLOAT32, cwd=four)
    ranks[1].wait_until((four / "out/checkpoint-2").exists)
    ranks[1].kill(signal.SIGKILL)
    assert ranks[1].wait(60).code == -signal.SIGKILL
    assert ranks[0].wait(60).code not in (0, None)
    ranks_of(4, four, "--resume")
    assert_same(four / "out", one / "out")


@needs_oneccl
def test_two_ranks_of_intel_mpi_killed_go_on_as_one(reference, tmp_path):
    folder = fresh(tmp_path / "killed")
    process = started(mpirun(2), folder)
    wait_for(folder / "out/checkpoint-2", process)
    os.kill(processes_of_ranks(process)[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    one_rank(folder, "--resume")
    assert_same(folder / "out", reference)


def test_a_signal_to_one_rank_saves_on_all(reference, tmp_path):
    folder = fresh(tmp_path / "stopped")
    ranks = start_ranks(2, "train", "config.yaml", FLOAT32, cwd=folder)
    ranks[1].wait_until((folder / "out/metrics.jsonl").exists)
    ranks[1].kill(signal.SIGTERM)
    results = [rank.wait(60) for rank in ranks]
    assert {result.code for result in results} == {128 + signal.SIGTERM}, results
    assert "SIGTERM: saved checkpoint-" in results[0].err + results[1].err
    assert list((folder / "out").glob("checkpoint-*"))
    ranks_of(2, folder, "--resume")
    assert_same(folder / "out", reference)


def test_a_users_mistake_is_one_line_under_torchrun(tmp_path):
    folder = fresh(tmp_path / "wrong")
    (folder / "train.jsonl").write_text("not JSON\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    err = finished(started([*torchrun, "--nproc-per-node=2"], folder), code=1)  # torchrun's code
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "train.jsonl" in errors[0], err
    assert not (folder / "out").exists()


def processes_of_ranks(launched):
    """The processes of the ranks that a launcher started, in order: those that started none."""
    below = psutil.Process(launched.pid).children(recursive=True)
    return sorted(process.pid for process in below if not process.children())
