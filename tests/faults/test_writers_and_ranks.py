"""Two runs on one folder, and ranks that differ: each ends with one line, and none waits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.harness import (
    MODEL,
    contents,
    run,
    shortest_examples,
    start,
    start_ranks,
    write_config,
)

from intel_ft.distributed.launch.launcher import free_port
from intel_ft.distributed.oneccl import why_not_usable

SCRIPTS = Path(sys.executable).parent
FLOAT32 = "model.dtype=float32"
WAIT = 120  # seconds: ranks that wait for each other do so for 1800
needs_oneccl = pytest.mark.skipif(why_not_usable() is not None, reason=str(why_not_usable()))


def fresh(folder, run_folder, **train):
    """A folder with config and data of its own; `run_folder` may be that of another one."""
    folder.mkdir()
    shortest_examples(folder / "train.jsonl", 0, 16)
    write_config(
        folder / "config.yaml",
        data={"max_length": 256},
        train={"max_tokens_per_row": 256, "save_steps": 1} | train,
        output={"directory": str(run_folder)},
    )
    return folder


@pytest.fixture
def hosts(tmp_path):
    """The working folders of two ranks, as on hosts with disks of their own, and one run folder."""
    return [fresh(tmp_path / name, tmp_path / "out") for name in ("one", "other")]


def other_data(folder):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows[0]["output"] = rows[0]["output"][::-1]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_base(folder):
    """The base of both ranks is `base` in their own folders; one has another rope."""
    base = folder / "base"
    values = json.loads((base / "config.json").read_text())
    values["rms_norm_eps"] = 0.01
    (base / "config.json").write_text(json.dumps(values))


def ranks_in(folders, *overrides):
    """Start a rank in each folder, over gloo; what came of each."""
    world = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(len(folders)),
        "LOCAL_WORLD_SIZE": str(len(folders)),
    }
    ranks = [
        start(
            *("train", "config.yaml", FLOAT32, *overrides[rank : rank + 1]),
            cwd=folder,
            env=world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, folder in enumerate(folders)
    ]
    return [rank.wait(WAIT) for rank in ranks]


@pytest.mark.parametrize(
    ("change", "override", "what", "way_out"),
    [
        (other_data, "train.seed=42", "training data", "the same data.train"),
        (other_base, "train.seed=42", "base config.json", "the same model.name_or_path"),
        (None, "train.learning_rate=0.5", "train.learning_rate", "the same train.learning_rate"),
        (None, "method.init=pissa", "method.init", "the same method.init"),
        (None, "backend.collective=ccl", "backend.collective", "set backend.collective"),
    ],
)
def test_ranks_that_differ_end_alike(hosts, tmp_path, change, override, what, way_out):
    for folder in hosts:
        shutil.copytree(MODEL, folder / "base")
        text = (folder / "config.yaml").read_text().replace(str(MODEL), "base")
        (folder / "config.yaml").write_text(text)
    if change is not None:
        change(hosts[1])
    results = ranks_in(hosts, "train.seed=42", override)
    assert [result.code for result in results] == [3, 3], results
    errors = [line for result in results for line in result.err.splitlines() if "error: " in line]
    assert len(errors) == 1, "rank 0 tells of it"
    assert f"the same {what}" in errors[0] and "rank 1 on" in errors[0]
    assert way_out in errors[0].rpartition(": ")[2]
    assert not (tmp_path / "out").exists()


@needs_oneccl
def test_ranks_of_intel_mpi_that_differ_end_alike(hosts, tmp_path):
    other_data(hosts[1])
    command = [SCRIPTS / "mpirun"]
    for folder in hosts:
        rank = ["-n", "1", "-wdir", folder, SCRIPTS / "intel-ft", "train", "config.yaml", FLOAT32]
        command += [*([":"] if folder is hosts[1] else []), *rank]
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
            "I_MPI_ROOT": sys.prefix,
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the same training data: rank 1 on" in errors[0]
    assert "give all ranks the same data.train" in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.fixture
def running(tmp_path):
    """A run of many steps under way, with its first checkpoint."""
    folder = fresh(tmp_path / "run", tmp_path / "out", max_steps=100_000)
    process = start("train", "config.yaml", cwd=folder)
    assert process.wait_until((tmp_path / "out/checkpoint-1").exists)
    yield process, folder
    process.kill(signal.SIGKILL)
    process.wait()


def test_a_second_run_is_refused_whatever_it_asks_for(running, tmp_path):
    process, folder = running
    seconds = [start("train", "config.yaml", *o, cwd=folder) for o in ([], ["--resume"])]
    seconds.append(start("train", "config.yaml", "--overwrite", cwd=folder))
    for second in seconds:
        result = second.wait()
        assert result.code == 2, result.err
        assert f"process {process.process.pid} on " in result.last_line
        assert "in use" in result.last_line and " since " in result.last_line
    ranks = start_ranks(2, "train", "config.yaml", FLOAT32, "--resume", cwd=folder)
    results = [rank.wait() for rank in ranks]
    assert [result.code for result in results] == [2, 2], results
    assert f"process {process.process.pid} on " in results[0].last_line
    assert process.code is None, "the first run goes on"
    process.kill(signal.SIGTERM)
    assert process.wait().code == 143
    assert not list((tmp_path / "out").glob(".*"))


def test_a_killed_run_does_not_lock_its_folder(running, tmp_path):
    process, folder = running
    process.kill(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "out/.lock").is_file()
    newest = max(int(path.name[11:]) for path in (tmp_path / "out").glob("checkpoint-*"))
    result = run("train", "config.yaml", f"train.max_steps={newest + 1}", "--resume", cwd=folder)
    assert result.code == 0, result.err
    assert f"took over the lock of process {process.process.pid}" in result.err
    assert not list((tmp_path / "out").glob(".*"))


def test_a_folder_that_cannot_be_written_to_is_found_before_the_model_is_loaded(tmp_path):
    folder = fresh(tmp_path / "run", "/proc/run")
    result = run("train", "config.yaml", cwd=folder)
    assert result.code == 2
    assert result.err.splitlines() == [result.last_line], "nothing was read before"
    assert "/proc/run: cannot be written to" in result.last_line


ONE_RANK = """
import os

from transformers import TrainerCallback


class OneRank(TrainerCallback):
    '''Asks on one rank only: rank 1 to save after step 1, rank 0 to stop after step 2.'''

    def on_step_end(self, args, state, control, **_):
        if os.environ["RANK"] == "1" and state.global_step == 1:
            control.should_save = True
        if os.environ["RANK"] == "0" and state.global_step == 2:
            control.should_training_stop = True
"""


def test_what_a_callback_asks_for_on_one_rank_happens_on_all(tmp_path):
    folder = fresh(tmp_path / "run", tmp_path / "out", save_steps=100, callbacks=["mine:OneRank"])
    (folder / "mine.py").write_text(ONE_RANK)
    ranks = start_ranks(2, "train", "config.yaml", FLOAT32, cwd=folder)
    results = [rank.wait(WAIT) for rank in ranks]
    assert [result.code for result in results] == [0, 0], results
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {
        "checkpoint-1",
        "checkpoint-2",
    }


def test_a_refused_run_leaves_the_folder_as_it_was(running, tmp_path):
    process, folder = running
    process.kill(signal.SIGTERM)
    process.wait()
    before = contents(tmp_path / "out")
    result = run("train", "config.yaml", "train.seed=7", "--resume", cwd=folder)
    assert result.code == 2 and "train.seed was 42" in result.last_line
    assert contents(tmp_path / "out") == before
