"""Two hosts that share a file system: locks, ranks that differ, and a killed run that restarts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import hosts
from support.harness import metrics, run, shortest_examples, write_config

from intel_ft.distributed.oneccl import why_not_usable

SCRIPTS = Path(sys.executable).parent
INTEL_FT = SCRIPTS / "intel-ft"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
problem = hosts.why_not() or why_not_usable()
pytestmark = pytest.mark.skipif(problem is not None, reason=str(problem))


def fresh(folder, **train):
    folder.mkdir()
    shortest_examples(folder / "train.jsonl", 0, 16)
    write_config(
        folder / "config.yaml",
        model={"dtype": "float32"},
        data={"max_length": 256},
        train={"max_tokens_per_row": 256, "save_steps": 1, "logging_steps": 1} | train,
    )
    (folder / "hosts").write_text("node1\nnode2\n")
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with hosts.cluster(tmp_path_factory.mktemp("hosts"), 2) as machines:
        yield machines


def start(host, folder, *arguments):
    return host.start(
        [INTEL_FT, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def launch(cluster, folder, *options):
    launched = ["launch", "config.yaml", "--hostfile", "hosts", "--ranks-per-host", "1"]
    return start(cluster.hosts[0], folder, *launched, *options)


def ended(process, code):
    out, _ = process.communicate(timeout=240)
    assert process.returncode == code, out
    return out


def test_a_run_on_another_host_locks_its_folder_until_it_is_killed(cluster, tmp_path):
    first, second = cluster.hosts
    folder = fresh(tmp_path / "run", max_steps=100_000)
    held = start(first, folder, "train", "config.yaml")
    hosts.wait((folder / "out/checkpoint-1").exists, 120)
    refused = ended(start(second, folder, "train", "config.yaml", "--resume"), 2)
    assert re.search(r"is in use: process \d+ on node1 has", refused), refused
    hosts.kill(held)
    assert held.wait(60) == -9
    newest = max(int(path.name[11:]) for path in (folder / "out").glob("checkpoint-*"))
    resume = ["train", "config.yaml", "--resume", f"train.max_steps={newest + 1}"]
    out = ended(start(second, folder, *resume), 0)
    assert re.search(r"took over the lock of process \d+ on node1", out), out
    assert metrics(folder / "out")[-1]["step"] == newest + 1


def test_a_rank_with_other_data_is_named(cluster, tmp_path):
    folder = fresh(tmp_path / "run")
    shortest_examples(tmp_path / "other.jsonl", 16, 32)
    data = folder / "train.jsonl"
    cluster.hosts[1].run("mount", "--bind", tmp_path / "other.jsonl", data)
    try:
        out = ended(launch(cluster, folder), 3)
    finally:
        cluster.hosts[1].run("umount", data)
    errors = [line for line in out.splitlines() if "error: " in line]
    assert len(errors) == 1, out
    assert "the same training data: rank 1 on node2 has" in errors[0]
    assert "rank 0 on node1 has" in errors[0]
    assert "give all ranks the same data.train" in errors[0]
    assert not (folder / "out").exists()


def test_the_first_rank_is_killed_and_the_restarted_run_computes_the_same(cluster, tmp_path):
    """Rank 0 holds the lock of the folder: its successor takes over."""
    one, two = (fresh(tmp_path / name, max_steps=6) for name in ("one", "two"))
    assert run("train", "config.yaml", cwd=one).code == 0
    process = launch(cluster, two, "--max-restarts", "1")
    hosts.wait((two / "out/checkpoint-2").exists, 120)
    (rank,) = [
        pid
        for pid, command in cluster.hosts[0].processes().items()
        if " train " in command and "mpi" not in command.split()[0]
    ]
    os.kill(rank, 9)
    out = ended(process, 0)
    assert "restart 1 of 1, from the latest complete checkpoint" in out
    assert re.search(r"took over the lock of process \d+ on node1", out), out
    reference = [line["loss"] for line in metrics(one / "out")]
    assert [line["loss"] for line in metrics(two / "out")] == pytest.approx(reference, rel=1e-5)
