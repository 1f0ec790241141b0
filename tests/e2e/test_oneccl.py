"""The `ccl` backend under real launchers: results of its collectives, failures, and exit."""

import os
import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from intel_ft.assets import resolve
from intel_ft.distributed.oneccl import why_not_usable

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = Path(__file__).parents[1] / "support/collectives.py"
SCRIPTS = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(why_not_usable() is not None, reason=str(why_not_usable()))


def launch(command, *program):
    environment = {
        **os.environ,
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "I_MPI_ROOT": sys.prefix,
        "FI_PROVIDER_PATH": f"{sys.prefix}/lib",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [*command, *program],
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
    """Every rank finished, and the launcher saw a clean exit."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"ok {rank}" in done.stdout for rank in range(ranks)), done.stdout
    assert "BAD TERMINATION" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "ranks", "mode"),
    [
        (mpirun(4), 4, "destroy"),
        (mpirun(2), 2, "leave"),
        (torchrun(2), 2, "destroy"),
        ([sys.executable], 1, "leave"),
    ],
    ids=["mpirun 4", "mpirun 2", "torchrun 2", "plain"],
)
def test_every_collective(command, ranks, mode, tmp_path):
    finished(launch(command, PROGRAM, mode, tmp_path / "store"), ranks)


@pytest.mark.parametrize(
    ("example", "launcher"),
    [
        ("plain_ddp", torchrun),
        ("transformers_trainer", mpirun),
        ("trl_sft", mpirun),
    ],
)
def test_a_users_script_with_one_import(example, launcher, tmp_path):
    if example == "trl_sft":
        pytest.importorskip("trl")
    rows = tmp_path / "rows.jsonl"
    with Path(resolve("docstring-to-python/train.jsonl")).open() as stream:
        rows.write_text("".join(islice(stream, 32)))
    arguments = (
        [] if example == "plain_ddp" else [resolve("tiny-python-llama"), rows, tmp_path / "out"]
    )
    done = launch(launcher(2), EXAMPLES / f"{example}.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    # The ranks trained on different rows and have the same weights.
    first, second = re.findall(r"rank \d of 2, (\w+: -?[\d.]+)", done.stdout)
    assert first == second and first.startswith("ccl: ")


def test_a_missing_rank_is_an_error_within_the_timeout(tmp_path):
    began = time.monotonic()
    done = launch(mpirun(2), PROGRAM, "late", tmp_path / "store")
    assert "said: oneCCL: all_reduce" in done.stdout, done.stdout + done.stderr
    assert "did not finish within its timeout of 8 s" in done.stdout
    assert done.returncode != 0
    assert time.monotonic() - began < 45  # the sleeping rank is ended by mpirun


def test_the_cpu_plugin_is_loaded_where_the_loaders_path_has_others():
    code = "from intel_ft.distributed.oneccl import why_not_usable; print(why_not_usable())"
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{sys.prefix}/lib"}
    environment.pop("CCL_PLUGIN", None)  # why_not_usable above has set it here
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
