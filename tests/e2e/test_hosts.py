"""Training on several hosts (see hosts.py) under Intel MPI and Open MPI: the losses of one rank."""

import os
import subprocess
import sys
from pathlib import Path

import hosts
import pytest
from harness import MODEL, metrics, run, shortest_examples, write_config

from intel_ft.distributed.oneccl import why_not_usable

SCRIPTS = Path(sys.executable).parent
TRAIN = {
    "max_steps": 4,
    "global_batch_size": 7,  # no number of ranks divides it
    "max_tokens_per_row": 256,
    "logging_steps": 1,
    "learning_rate": 0.002,
}
pytestmark = pytest.mark.skipif(hosts.why_not() is not None, reason=str(hosts.why_not()))


def fresh(folder):
    folder.mkdir()
    shortest_examples(folder / "train.jsonl", 0, 40)
    model = {"name_or_path": str(MODEL), "dtype": "float32"}
    data = {"train": "train.jsonl", "max_length": 256}
    write_config(folder / "config.yaml", train=TRAIN, model=model, data=data)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with hosts.cluster(tmp_path_factory.mktemp("hosts"), 3) as machines:
        yield machines


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The losses on one rank."""
    folder = fresh(tmp_path_factory.mktemp("reference") / "one")
    assert run("train", "config.yaml", cwd=folder).code == 0
    return [line["loss"] for line in metrics(folder / "out")]


def intel_mpi(number):
    if problem := why_not_usable():
        pytest.skip(problem)
    names = ",".join(f"node{i}" for i in range(1, number + 1))
    # Without FI_TCP_IFACE the ranks try docker0, whose address all hosts have, and wait for ever.
    variables = {"I_MPI_ROOT": sys.prefix, "FI_TCP_IFACE": "eth0"}
    variables["PATH"] = f"{SCRIPTS}:{os.environ['PATH']}"
    return [SCRIPTS / "mpirun", "-hosts", names, "-ppn", "1", "-n", str(number)], variables


def open_mpi(number):
    program = Path("/usr/bin/mpirun.openmpi")
    if not program.exists():
        pytest.skip("no Open MPI: make cluster")
    names = ",".join(f"node{i}" for i in range(1, number + 1))
    exported = ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "PYTHONPATH")
    flags = [flag for name in exported if name in os.environ for flag in ("-x", name)]
    flags += ["-x", "MASTER_ADDR", "-x", "MASTER_PORT", "--bind-to", "none", "--allow-run-as-root"]
    return [program, "-H", names, "-n", str(number), *flags], {}


@pytest.mark.parametrize(
    ("launcher", "number", "collective"), [(intel_mpi, 3, "ccl"), (open_mpi, 2, "gloo")]
)
def test_hosts_compute_what_one_rank_does(
    launcher, number, collective, cluster, reference, tmp_path
):
    command, variables = launcher(number)
    folder = fresh(tmp_path / "run")
    variables |= {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1"}
    process = cluster.hosts[0].start(
        [*command, SCRIPTS / "intel-ft", "train", "config.yaml"],
        cwd=folder,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert f"backend.collective = {collective}" in out
    assert [line["loss"] for line in metrics(folder / "out")] == pytest.approx(reference, rel=1e-5)


def test_hosts_are_apart(cluster):
    first, second, _ = cluster.hosts
    assert first.run("ssh", "node2", "hostname").strip() == "node2"
    sleeper = second.start(["sleep", "100"])
    try:
        hosts.wait(lambda: any("sleep" in command for command in second.processes().values()))
        assert not any("sleep" in command for command in first.processes().values())
    finally:
        hosts.kill(sleeper)
        sleeper.wait()
    assert sleeper.returncode == -9


def test_a_link_that_is_down_and_up_again(cluster):
    first, second, _ = cluster.hosts
    cluster.link_down(second)
    try:
        with pytest.raises(AssertionError, match="node2"):
            first.run("ssh", "-o", "ConnectTimeout=1", "node2", "true")
    finally:
        cluster.link_up(second)
    first.run("ssh", "node2", "true")


def test_a_slow_link(cluster):
    third = cluster.hosts[2]
    cluster.shape(third, 0.01)
    receive = "head -c 1 >/dev/null; date +%s.%N; cat >/dev/null; date +%s.%N"
    send = f"head -c 3000000 /dev/zero | ssh node3 '{receive}'"
    first, last = map(float, cluster.hosts[0].run("sh", "-c", send).split())
    assert last - first > 1, "24 Mbit at 10 Mbit/s"


def test_nothing_is_left_of_a_cluster_whose_test_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), hosts.cluster(tmp_path, 1) as machines:
        host = machines.hosts[0]
        sleeper = host.start(["setsid", "sleep", "1000"])
        hosts.wait(host.processes)
        _ = 1 / 0
    assert sleeper.wait(timeout=10) != 0
    hosts.wait(lambda: not host.processes() and not Path(f"/proc/{host.pid}").exists())
