"""The files in launch/ are what `launch --via` writes, with other comments, and valid."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from intel_ft.distributed.launch import scheduler_jobs
from intel_ft.distributed.launch.launcher import Request
from intel_ft.host import topology
from intel_ft.host.topology import Core, Topology

FOLDER = Path(__file__).parents[3] / "launch"
GENERATED = {
    "slurm": "slurm.sh",
    "pbs": "pbs.sh",
    "k8s": "k8s-mpijob.yaml",
    "k8s-trainjob": "k8s-trainjob.yaml",
}


def generated(via, monkeypatch):
    """For four nodes of two sockets with 28 cores each."""
    cores = tuple(Core(n // 28, n // 28, (n,)) for n in range(56))
    monkeypatch.setattr(topology, "read", lambda: Topology(cores, {0: 128.0, 1: 128.0}, None))
    monkeypatch.setattr(sys, "executable", "python")
    request = Request(
        config=Path("run.yaml"),
        overrides=(),
        run=Path("runs/lora"),
        train=(),
        hostfile=None,
        ranks_per_host=2,
        via=via,
        ssh="ssh",
        mpirun=None,
        max_restarts=2,
        elastic=False,
    )
    return scheduler_jobs.render(request, 4)


def without_comments(text):
    kept = ("#SBATCH", "#PBS", "#!")
    return [line for line in text.splitlines() if line.startswith(kept) or line[:1] != "#"]


@pytest.mark.parametrize("via", GENERATED)
def test_what_is_kept_is_what_is_generated(via, monkeypatch):
    kept = (FOLDER / GENERATED[via]).read_text()
    assert without_comments(kept) == without_comments(generated(via, monkeypatch))


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_files_are_valid_and_name_no_machine(path):
    text = path.read_text()
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", path], check=True)
    else:
        assert yaml.safe_load(text)["kind"] in ("MPIJob", "TrainJob")
    assert "/home/" not in text.replace("/home/intel-ft/.ssh", "")
    assert sys.prefix not in text
