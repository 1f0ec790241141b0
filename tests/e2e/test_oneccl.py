"""The `ccl` backend under real launchers: what its collectives give, how it fails, how it ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intel_ft.distributed.oneccl import why_not_usable

PROGRAM = Path(__file__).with_name("collectives.py")
SCRIPTS = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(why_not_usable() is not None, reason=str(why_not_usable()))


def launch(command, mode, folder, program=PROGRAM):
    environment = {
        **os.environ,
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "I_MPI_ROOT": sys.prefix,
        "FI_PROVIDER_PATH": f"{sys.prefix}/lib",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [*command, program, mode, folder / "store"],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def mpirun(ranks):
    return [SCRIPTS / "mpirun", "-n", str(ranks), sys.executable]


def torchrun(ranks):
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]


def finished(done, ranks):
    """Every rank came to its end, and the launcher saw a clean exit."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"ok {rank}" in done.stdout for rank in range(ranks)), done.stdout
    assert "BAD TERMINATION" not in done.stdout + done.stderr


@pytest.mark.parametrize("mode", ["destroy", "leave"])
@pytest.mark.parametrize(
    ("command", "ranks"),
    [(mpirun(2), 2), (mpirun(4), 4), (torchrun(2), 2), ([sys.executable], 1)],
    ids=["mpirun 2", "mpirun 4", "torchrun 2", "plain"],
)
def test_every_collective(command, ranks, mode, tmp_path):
    finished(launch(command, mode, tmp_path), ranks)


@pytest.mark.parametrize("launcher", [mpirun, torchrun])
def test_transformers_own_trainer(launcher, tmp_path):
    finished(launch(launcher(2), "", tmp_path, PROGRAM.with_name("trainer_on_ccl.py")), 2)


def test_a_rank_that_does_not_come_is_an_error_in_time(tmp_path):
    began = time.monotonic()
    done = launch(mpirun(2), "late", tmp_path)
    assert "said: oneCCL: all_reduce" in done.stdout, done.stdout + done.stderr
    assert "was not done after 2 s" in done.stdout
    assert done.returncode != 0
    assert time.monotonic() - began < 45  # the sleeping rank is ended by mpirun
