"""Any number of ranks is the same run: the same steps, losses and adapter.

Runs are started by real launchers, killed, and resumed on other numbers of ranks.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support.worlds import assert_same, fresh, losses, wait_for

from intel_ft.distributed.oneccl import why_not_usable

SCRIPTS = Path(sys.executable).parent
needs_oneccl = pytest.mark.skipif(why_not_usable() is not None, reason=str(why_not_usable()))


def torchrun(ranks):
    program = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]
    return [*program, "--no-python", SCRIPTS / "intel-ft"]


def mpirun(ranks):
    return [SCRIPTS / "mpirun", "-n", str(ranks), SCRIPTS / "intel-ft"]


def alone(_):
    return [SCRIPTS / "intel-ft"]


def started(launcher, ranks, folder, *arguments, dtype="float32"):
    environment = {
        **os.environ,
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "I_MPI_ROOT": sys.prefix,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [*launcher(ranks), "train", "config.yaml", f"model.dtype={dtype}", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process, code=0):
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, out + err
    return out, err


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run on one rank."""
    folder = fresh(tmp_path_factory.mktemp("ranks") / "one")
    finished(started(alone, 1, folder))
    return folder / "out"


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    # Two ranks: tests/e2e/test_launch_walk.py, by both launchers.
    [(torchrun, 4), pytest.param(mpirun, 4, marks=needs_oneccl)],
)
def test_any_number_of_ranks_is_the_same_run(reference, tmp_path, launcher, ranks):
    folder = fresh(tmp_path / "many")
    _, err = finished(started(launcher, ranks, folder, "--json"))
    collective = "ccl" if launcher is mpirun else "gloo"
    assert f"backend.collective = {collective}" in err
    assert err.count("backend.collective") == 1, "only the first rank tells of decisions"
    assert_same(folder / "out", reference)


def test_more_ranks_than_examples_in_a_step(tmp_path):
    one, three = (fresh(tmp_path / name, global_batch_size=2) for name in ("one", "three"))
    finished(started(alone, 1, one))
    finished(started(torchrun, 3, three))
    assert_same(three / "out", one / "out")


def test_bf16_is_the_same_to_its_rounding(tmp_path):
    # Few steps: rounding grows from step to step.
    one, two = (fresh(tmp_path / name, max_steps=6) for name in ("one", "two"))
    finished(started(alone, 1, one, dtype="bfloat16"))
    finished(started(torchrun, 2, two, dtype="bfloat16"))
    assert losses(two / "out") == pytest.approx(losses(one / "out"), rel=0.01)


@pytest.mark.parametrize(
    ("first", "launcher", "ranks"),
    [(torchrun, torchrun, 3), pytest.param(mpirun, alone, 1, marks=needs_oneccl)],
)
def test_two_ranks_killed_go_on_as_any_number(reference, tmp_path, first, launcher, ranks):
    folder = fresh(tmp_path / "killed")
    process = started(first, 2, folder)
    wait_for(folder / "out/checkpoint-2", process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    finished(started(launcher, ranks, folder, "--resume"))
    assert_same(folder / "out", reference)


def test_a_signal_to_one_rank_saves_on_all(reference, tmp_path):
    folder = fresh(tmp_path / "stopped")
    process = started(torchrun, 2, folder)
    wait_for(folder / "out/metrics.jsonl", process)
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "SIGTERM: saved checkpoint-" in err
    assert list((folder / "out").glob("checkpoint-*"))
    finished(started(torchrun, 2, folder, "--resume"))
    assert_same(folder / "out", reference)


def test_a_users_mistake_is_one_line(tmp_path):
    folder = fresh(tmp_path / "wrong")
    (folder / "train.jsonl").write_text("not JSON\n")
    _, err = finished(started(torchrun, 2, folder), code=1)  # torchrun's own code
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "train.jsonl" in said[0], err
    assert not (folder / "out").exists()


def ranks_of(launched):
    """The processes of the ranks that a launcher started, in order: those that started none."""
    below = psutil.Process(launched.pid).children(recursive=True)
    return sorted(process.pid for process in below if not process.children())
