"""`intel-ft launch` with real launchers: the losses of one rank, logs, signals, restarts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.harness import run
from support.worlds import assert_same, fresh, ranks_in, wait_for

from intel_ft.distributed.oneccl import why_not_usable

INTEL_FT = Path(sys.executable).parent / "intel-ft"
INTEL_MPI = pytest.mark.skipif(why_not_usable() is not None, reason=str(why_not_usable()))
OPEN_MPI = pytest.mark.skipif(not shutil.which("mpirun.openmpi"), reason="Open MPI is missing")


def launched(folder, *arguments):
    return subprocess.Popen(
        [INTEL_FT, "launch", "config.yaml", "model.dtype=float32", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, code):
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return err


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = fresh(tmp_path_factory.mktemp("launch") / "one")
    done = run("train", "config.yaml", "model.dtype=float32", cwd=folder)
    assert done.code == 0, done.err
    return folder / "out"


@INTEL_MPI
def test_two_ranks_by_mpirun_through_a_killed_rank(reference, tmp_path):
    """A killed rank leads to a restart from the latest checkpoint, with the same results."""
    folder = fresh(tmp_path / "two")
    process = launched(folder, "--ranks-per-host", "2", "--max-restarts", "1")
    wait_for(folder / "out/checkpoint-2", process)
    os.kill(ranks_in(folder)[1], signal.SIGKILL)
    err = ended(process, 0)
    assert "restart 1 of 1, from the latest complete checkpoint" in err
    assert "resuming from out/checkpoint-" in err
    assert "backend.collective = ccl" in err
    assert_same(folder / "out", reference)
    logs = [(folder / f"out.logs/rank-{rank}.log").read_text() for rank in (0, 1)]
    assert "step 8: validation loss" in logs[0]
    assert "backend.bind" in logs[1]
    assert not ranks_in(folder)


def test_two_ranks_by_torchrun(reference, tmp_path):
    folder = fresh(tmp_path / "two")
    ended(launched(folder, "--ranks-per-host", "2", "--via", "torchrun"), 0)
    assert_same(folder / "out", reference)


@INTEL_MPI
def test_a_signal_to_launch_saves_on_all_and_a_frozen_rank_is_named(reference, tmp_path):
    folder = fresh(tmp_path / "two")
    options = ["--ranks-per-host", "2", "backend.heartbeat_timeout=5"]
    process = launched(folder, *options)
    wait_for(folder / "out/metrics.jsonl", process)
    process.terminate()
    err = ended(process, 143)
    assert "SIGTERM: saved checkpoint-" in err

    process = launched(folder, *options, "--resume", "train.max_steps=1000")
    wait_for(folder / "out/checkpoint-8", process)
    os.kill(ranks_in(folder)[1], signal.SIGSTOP)
    began = time.monotonic()
    err = ended(process, 1)
    assert time.monotonic() - began < 120
    assert "rank 1 on" in err and "sent no heartbeat for 5 s" in err, err
    assert not ranks_in(folder)


@INTEL_MPI
def test_a_world_that_was_not_launched(tmp_path):
    folder = fresh(tmp_path / "wrong")
    mpirun = [INTEL_FT.with_name("mpirun"), "-n", "2", INTEL_FT, "train", "config.yaml"]
    done = subprocess.run(
        [*mpirun, "--ranks", "3"],
        cwd=folder,
        env={**os.environ, "I_MPI_ROOT": sys.prefix, "PATH": f"{INTEL_FT.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "error: launched: 3 ranks, but this process sees 2" in done.stderr


@OPEN_MPI
def test_two_ranks_by_open_mpi(reference, tmp_path):
    folder = fresh(tmp_path / "two")
    ended(launched(folder, "--ranks-per-host", "2", "--mpirun", "mpirun.openmpi"), 0)
    assert_same(folder / "out", reference)
