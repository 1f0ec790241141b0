"""A run as a Slurm job on two nodes (see slurm.py): after a signal it saves, requeues and resumes.

It ends with the losses of an uninterrupted run. And a job with fewer cores than its node has.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support import slurm
from support.harness import MODEL, metrics, run, shortest_examples, write_config
from support.hosts import wait

STEPS = 12
pytestmark = pytest.mark.skipif(slurm.why_not() is not None, reason=str(slurm.why_not()))


def fresh(folder):
    folder.mkdir()
    shortest_examples(folder / "train.jsonl", 0, 40)
    train = {
        "max_steps": STEPS,
        "global_batch_size": 7,
        "max_tokens_per_row": 256,
        "save_steps": 100,  # but for the signal, none is saved before the end
        "logging_steps": 1,
        "learning_rate": 0.002,
    }
    model = {"name_or_path": str(MODEL), "dtype": "float32"}
    data = {"train": "train.jsonl", "max_length": 256}
    write_config(folder / "config.yaml", train=train, model=model, data=data)
    launch = ["launch", "config.yaml", "--via", "slurm", "--nodes", "2", "--ranks-per-host", "1"]
    assert run(*launch, "-o", "job.sh", cwd=folder).code == 0
    return folder


def losses(run_folder):
    return [line["loss"] for line in metrics(run_folder) if "loss" in line]


@pytest.fixture
def cluster():
    # pytest's folders are too deep: the path of a socket has at most 108 bytes.
    # The daemons may still write while they shut down.
    with (
        TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        slurm.cluster(Path(folder)) as running,
    ):
        yield running


def test_a_signalled_job_is_requeued_and_resumes(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = fresh(tmp_path / "job")
    job = cluster.submit(folder / "job.sh")
    try:
        wait((folder / "out/metrics.jsonl").exists, 240)
    except AssertionError:
        pytest.fail(cluster.run("scontrol", "show", "job", job) + cluster.run("sinfo"))
    cluster.run("scancel", "--signal=TERM", job)
    wait(lambda: cluster.field(job, "Restarts") == "1", 60)
    saved = [path.name for path in (folder / "out").glob("checkpoint-*")]
    # It restarts by itself. (If released at once, a node would mistake it for the killed one.)
    ended = cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=240)
    log = next(folder.glob("out.logs-*.out")).read_text()
    assert ended == "COMPLETED", log
    assert len(saved) == 1 and f"SIGTERM: saved {saved[0]}" in log
    assert f"resuming from out/{saved[0]}" in log
    alone = fresh(tmp_path / "alone")
    assert run("train", "config.yaml", cwd=alone).code == 0
    assert losses(folder / "out") == pytest.approx(losses(alone / "out"), rel=1e-5)
    assert len(losses(alone / "out")) == STEPS


def test_a_job_of_one_core_uses_one(cluster, tmp_path):
    """Without a cpuset (TaskPlugin=task/none) only the variables have the number."""
    if os.cpu_count() < 2:
        pytest.skip("one core cannot be made fewer")
    code = "from intel_ft.host.topology import read; print(read().usable, read().quota_by)"
    look = f"{sys.executable} -c '{code}'"
    (tmp_path / "job.sh").write_text(f"#!/bin/bash\n{look}\nsrun --mpi=none -c 1 {look}\n")
    output = tmp_path / "output.txt"
    job = cluster.submit(tmp_path / "job.sh", "--ntasks=1", f"--output={output}")
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", output.read_text()
    assert output.read_text() == "1 Slurm\n1 Slurm\n"
