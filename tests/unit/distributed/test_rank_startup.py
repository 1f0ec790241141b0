"""A rank's startup: launcher variables, network interface, and how `launch` learns of errors."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from intel_ft.cli import train
from intel_ft.distributed import process_group
from intel_ft.distributed import rank_startup as rank
from intel_ft.distributed.launch import launcher as launching
from intel_ft.distributed.launch.commands import Command
from intel_ft.distributed.launch.job_spec import Job
from intel_ft.distributed.launch.supervise import supervise
from intel_ft.distributed.oneccl.library import under_intel_mpi
from intel_ft.distributed.rank_startup import LaunchOptions, start_rank
from intel_ft.distributed.world import World
from intel_ft.errors import EnvironmentProblem, IntelFTError
from intel_ft.host.launcher_env import TORCHRUN, LauncherEnv

HERE = "127.0.0.1"
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NODEID": "1",
}
PMI = {"PMI_SIZE": "4", "PMI_RANK": "3"}
HYDRA = PMI | {"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.fixture(autouse=True)
def environment():
    """One that no launcher has touched; what a rank sets there is taken away again."""
    before = dict(os.environ)
    for name in (
        *("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        *(*SRUN, *HYDRA, "OMPI_COMM_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "GLOO_SOCKET_IFNAME"),
        rank.LOGS,
    ):
        os.environ.pop(name, None)
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("variables", "launcher", "mpi"),
    [
        (SRUN, "srun", False),
        (SRUN | PMI, "srun", False),  # --mpi=pmi2, perhaps by MpiDefault
        (SRUN | HYDRA, "Intel MPI or MPICH", True),  # mpirun in a job starts its helpers by srun
        (HYDRA, "Intel MPI or MPICH", True),
    ],
)
def test_srun_with_pmi_is_srun(variables, launcher, mpi, environment):
    environment.update(variables)
    env = LauncherEnv.detect(environment)
    assert (env.launcher, env.rank, env.size) == (launcher, 3, 4)
    assert (env.local_rank, env.local_size) == (1, 2)
    assert under_intel_mpi() == mpi


def two_hosts(launcher="srun", rank=0):
    return World(rank, 4, rank % 2, 2, launcher)


def test_the_interface_where_the_own_name_is_a_loopback_address(environment, monkeypatch):
    """Debian's installer writes `127.0.1.1 NAME` into /etc/hosts."""
    environment["MASTER_ADDR"] = "127.0.1.1"
    sources = {"127.0.1.1": "127.0.0.1", process_group._UNASSIGNED: "10.0.0.5"}
    monkeypatch.setattr(process_group, "_source_address", sources.get)
    interfaces = {
        name: [SimpleNamespace(address=address), SimpleNamespace(address="fe80::1")]
        for name, address in (
            ("lo", "127.0.0.1"),
            ("docker0", "172.17.0.1"),
            ("eth0", "10.0.0.5"),
        )
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    decision = process_group.network_interface(two_hosts())
    assert (decision.value, decision.reason) == ("eth0", "the default route")
    del sources[process_group._UNASSIGNED]
    assert process_group.network_interface(two_hosts()) is None
    sources["node1"] = "10.0.0.5"
    environment["MASTER_ADDR"] = "node1"
    assert process_group.network_interface(two_hosts()).reason == "the route to node1"


def test_the_source_is_what_the_kernel_says():
    assert process_group._source_address("127.0.1.1") is not None
    assert process_group._source_address("no.such.host.invalid") is None


def test_rank_0_listens_where_it_is(environment):
    environment["MASTER_PORT"] = "29500"
    for host in (HERE, "localhost"):
        environment["MASTER_ADDR"] = host
        process_group._set_rendezvous(two_hosts())
    environment["MASTER_ADDR"] = "192.0.2.7"  # RFC 5737: nobody's
    with pytest.raises(EnvironmentProblem, match=r"MASTER_ADDR=192.0.2.7 is not an address of "):
        process_group._set_rendezvous(two_hosts())
    process_group._set_rendezvous(two_hosts(rank=1))  # which only connects to it
    process_group._set_rendezvous(two_hosts(TORCHRUN))  # its agent may be elsewhere
    environment["MASTER_ADDR"] = "no.such.host.invalid"
    with pytest.raises(EnvironmentProblem, match="cannot be resolved"):
        process_group._set_rendezvous(two_hosts())


def test_ranks_on_several_hosts_guess_no_port(environment):
    """A port derived from the parent process differs between hosts."""
    environment["MASTER_ADDR"] = HERE
    with pytest.raises(EnvironmentProblem, match="MASTER_PORT is not set"):
        process_group._set_rendezvous(two_hosts())
    process_group._set_rendezvous(World(0, 2, 0, 2, "srun"))
    assert 20000 <= int(environment["MASTER_PORT"]) < 40000


@pytest.mark.parametrize("tasks", ["", "2(x", "many", "2"])
def test_slurms_list_of_tasks_that_says_nothing_of_this_node(tasks, environment):
    environment.update(SRUN | {"SLURM_STEP_TASKS_PER_NODE": tasks})
    with pytest.raises(EnvironmentProblem, match="SLURM_STEP_TASKS_PER_NODE="):
        LauncherEnv.detect(environment)


def test_what_an_earlier_job_left_does_not_count(environment):
    environment.update(HYDRA | {"PMI_RANK": "0", "MPI_LOCALRANKID": "0"})
    environment.update(MASTER_ADDR="old", MASTER_PORT="1")
    start_rank(LaunchOptions(None, f"{HERE}:29500"), "none")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == (HERE, "29500")
    torchrun = {"WORLD_SIZE": "4", "RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    environment.update(torchrun, MASTER_ADDR="localhost", MASTER_PORT="7")
    start_rank(LaunchOptions(None, f"{HERE}:29500"), "none")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("localhost", "7")


def test_binding_is_told_of_the_collective(tmp_path, environment, monkeypatch):
    """A rank whose exchanges go over gloo leaves no core to oneCCL's workers."""
    environment.update(HYDRA)
    told = []

    def bind(env, setting, collective):
        told.append((setting, collective))
        raise EnvironmentProblem("enough")

    monkeypatch.setattr(rank, "bind", bind)
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {name_or_path: tiny-python-llama}\ndata: {train: none.jsonl}\n"
        f"output: {{directory: {tmp_path / 'out'}}}\nbackend: {{collective: gloo}}\n"
    )
    with pytest.raises(EnvironmentProblem, match="enough"):
        train.run(config)
    assert told == [("auto", "gloo")]


def test_ranks_that_do_not_come_may_come_the_next_time(environment):
    """`launch --max-restarts` tries again: 1 is the only code after which it does."""
    from intel_ft.config_sections import BackendConfig

    with socket.socket() as taken:
        taken.bind((HERE, 0))
        taken.listen()
        environment.update(MASTER_ADDR=HERE, MASTER_PORT=str(taken.getsockname()[1]))
        world = World(0, 2, 0, 2, "Open MPI")
        settings = BackendConfig(collective="gloo", timeout=2)
        with (
            pytest.raises(IntelFTError, match="could not join") as error,
            process_group.init_process_group(world, settings),
        ):
            pass
    assert error.value.exit_code == 1 and 1 not in launching.FINAL_EXIT_CODES


def code(*lines):
    return (sys.executable, "-c", "\n".join(lines))


def test_a_wrong_world_is_told_to_launch(tmp_path, environment):
    """Two ranks that do not know of each other, as by the mpirun of another MPI."""
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {name_or_path: tiny-python-llama}\n"
        f"data: {{train: none.jsonl}}\noutput: {{directory: {tmp_path / 'out'}}}\n"
    )
    train = (sys.executable, "-m", "intel_ft", "train", str(config), "--ranks", "2")
    logs = tmp_path / "logs"
    lost = ("import subprocess, sys", f"subprocess.run({(*train, '--logs', str(logs))!r})")
    assert supervise(Command(code(*lost, "sys.exit(255)"), {}, "a launcher"), logs) == 3


@pytest.mark.parametrize(
    ("launchers", "expected"), [(3, 3), (2, 2), (143, 143), (255, 1), (137, 1), (0, 0)]
)
def test_the_launchers_code_where_no_rank_left_one(launchers, expected, tmp_path):
    command = Command(code(f"raise SystemExit({launchers})"), {}, "a launcher")
    other = subprocess.Popen(["sleep", "600"])  # a child of this process that it did not launch
    try:
        assert supervise(command, tmp_path / "logs") == expected
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_restart_keeps_json_and_resumes(tmp_path, monkeypatch):
    request = SimpleNamespace(train=("--overwrite", "--json"), max_restarts=2)
    train_options = []

    def prepare(request, *, check):
        train_options.append(request.train)
        return Job((), (), 2, "master"), []

    monkeypatch.setattr(launching, "replace", lambda request, **more: SimpleNamespace(**more))
    monkeypatch.setattr(launching, "prepare", prepare)
    monkeypatch.setattr(launching, "launch_command", lambda request, job: None)
    monkeypatch.setattr(launching, "log_folder", lambda request: tmp_path)
    codes = iter((1, 1, 0))
    monkeypatch.setattr(launching, "supervise", lambda command, logs: next(codes))
    assert launching.launch(request) == 0
    assert train_options == [
        ("--overwrite", "--json"),
        ("--resume", "--json"),
        ("--resume", "--json"),
    ]


def test_what_ends_a_rank_is_in_its_log(tmp_path, environment):
    """Of a rank on another host the log is often all there is."""
    log = tmp_path / "rank-3.log"
    environment.update(RANK="3", **{rank.LOGS: str(tmp_path)})
    rank.report_exit_code(1, "rank 0 cannot be reached")
    assert not log.exists()  # nobody began
    log.write_text("step 1\n")
    for error in (IntelFTError("the disk is full"), KeyError("name")):
        try:
            raise error
        except Exception:
            rank.report_exit_code(1)
    rank.report_exit_code(1, "rank 0 cannot be reached")
    lines = log.read_text().splitlines()
    assert lines[0] == "step 1" and lines[1].endswith("error: the disk is full")
    assert "Traceback" in lines[2] and "KeyError: 'name'" in lines
    assert lines[-1].endswith("error: rank 0 cannot be reached")
    assert (tmp_path / rank.FAILED).read_text() == "1\n"


def test_a_run_that_failed_ends_with_the_way_to_continue(tmp_path, monkeypatch, caplog):
    job = Job((), (), 2, "master")
    monkeypatch.setattr(launching, "replace", lambda request, **more: SimpleNamespace(**more))
    monkeypatch.setattr(launching, "prepare", lambda request, *, check: (job, []))
    monkeypatch.setattr(launching, "launch_command", lambda request, job: None)
    monkeypatch.setattr(launching, "log_folder", lambda request: tmp_path)
    monkeypatch.setattr(launching, "supervise", lambda command, logs: 1)
    assert launching.launch(SimpleNamespace(train=(), max_restarts=0)) == 1
    assert f"the ranks' logs are in {tmp_path}; --resume continues" in caplog.text
