"""`launch` on several hosts (see hosts.py) under Intel MPI and Open MPI: the losses of one rank."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from support import hosts
from support.harness import MODEL, metrics, run, shortest_examples, write_config

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


def program(name):
    """The path of an mpirun; skips the test if it is not installed."""
    if name == "mpirun" and (problem := why_not_usable()):
        pytest.skip(problem)
    if (path := shutil.which(name, path=f"{SCRIPTS}:{os.environ['PATH']}")) is None:
        pytest.skip(f"no {name}: make cluster")
    return path


def ended(cluster, folder, *command, **environment):
    """Run a command on node1 to its end; its output."""
    process = cluster.hosts[0].start(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out


@pytest.mark.parametrize(
    ("mpirun", "via", "number", "collective"),
    [
        ("mpirun", "mpirun", 3, "ccl"),
        ("mpirun", "accelerate", 2, "ccl"),
        ("mpirun.openmpi", "mpirun", 3, "gloo"),
    ],
)
def test_hosts_compute_what_one_rank_does(
    mpirun, via, number, collective, cluster, reference, tmp_path
):
    folder = fresh(tmp_path / "run")
    (folder / "hosts").write_text("".join(f"node{i}\n" for i in range(1, number + 1)))
    options = ["--hostfile", "hosts", "--via", via, "--mpirun", program(mpirun)]
    launch = [SCRIPTS / "intel-ft", "launch", "config.yaml", "--ranks-per-host", "1", *options]
    out = ended(cluster, folder, *launch)
    assert f"backend.collective = {collective}" in out
    assert "network interface = eth0 (the route to node1)" in out
    assert [line["loss"] for line in metrics(folder / "out")] == pytest.approx(reference, rel=1e-5)


def test_accelerate_launch_with_a_config_file_of_its_own(cluster, reference, tmp_path):
    """Under Open MPI; the file has what `accelerate config` writes for these answers."""
    folder = fresh(tmp_path / "run")
    (folder / "mpirun").symlink_to(program("mpirun.openmpi"))
    (folder / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    ClusterConfig(
        compute_environment="LOCAL_MACHINE",
        distributed_type="MULTI_CPU",
        mixed_precision="no",
        use_cpu=True,
        debug=False,
        num_processes=2,
        num_machines=2,
        main_process_ip="node1",
        main_process_port=29500,
        mpirun_config={"mpirun_hostfile": str(folder / "hosts")},
    ).to_yaml_file(folder / "accelerate.yaml")
    accelerate = [SCRIPTS / "accelerate", "launch", "--config_file", "accelerate.yaml", "--cpu"]
    train = ["-m", "intel_ft", "train", "config.yaml", "--ranks", "2", "--master", "node1:29500"]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    out = ended(cluster, folder, *accelerate, *train, **root, **path)
    assert "backend.collective = gloo" in out
    assert [line["loss"] for line in metrics(folder / "out")] == pytest.approx(reference, rel=1e-5)


def test_unreachable_hosts_are_named(cluster, tmp_path):
    folder = fresh(tmp_path / "run")
    (folder / "hosts").write_text("node1\nnode2\nnode9\n")
    command = [SCRIPTS / "intel-ft", "launch", "config.yaml", "--hostfile", "hosts"]
    process = cluster.hosts[0].start(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "error: unreachable hosts: node9" in out and "--elastic" in out, out
    assert not (folder / "out").exists()


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
    send = ["ssh", "node3", "echo; head -c 6000000 /dev/zero"]
    with cluster.hosts[0].start(send, stdout=subprocess.PIPE) as sender:
        sender.stdout.readline()  # the connection is established now
        began = time.monotonic()
        assert len(sender.stdout.read()) == 6_000_000
    assert time.monotonic() - began > 1, "48 Mbit at 10 Mbit/s"


def test_nothing_is_left_of_a_cluster_whose_test_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), hosts.cluster(tmp_path, 1) as machines:
        host = machines.hosts[0]
        sleeper = host.start(["setsid", "sleep", "1000"])
        hosts.wait(host.processes)
        _ = 1 / 0
    assert sleeper.wait(timeout=10) != 0
    hosts.wait(lambda: not host.processes() and not Path(f"/proc/{host.pid}").exists())
