"""`launch` before something starts: host files, commands, job files, reports of hosts."""

import re
import shlex
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed.run
import yaml
from pydantic import ValidationError
from support.kubernetes_schemas import MPIJob, TrainJob
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from typer.testing import CliRunner

from intel_ft.cli import main
from intel_ft.cli.main import app
from intel_ft.distributed.launch import commands, preflight, scheduler_jobs, torchrun
from intel_ft.distributed.launch.hostfile import read_hostfile
from intel_ft.distributed.launch.job_spec import Job, forwarded
from intel_ft.distributed.launch.launcher import Request
from intel_ft.distributed.launch.supervise import supervise
from intel_ft.errors import EnvironmentProblem, Stopped, UserError

ROOT = Path(__file__).parents[3]
CONFIG = """\
model: {name_or_path: tiny-python-llama}
data: {train: docstring-to-python}
output: {directory: runs/one}
"""
PROGRAM = ("python", "-m", "intel_ft", "train", "run.yaml")
TWO_HOSTS = Job(PROGRAM, ("node1", "node2"), 4, "node1:29500")


@pytest.mark.parametrize(
    ("text", "hosts", "slots"),
    [
        ("node1\nnode2\n", ("node1", "node2"), None),
        ("# all\nnode1 slots=4\nnode2 slots=4 max_slots=8\n", ("node1", "node2"), 4),
        ("node1:2\n\nnode-2.lan:2  # new\n", ("node1", "node-2.lan"), 2),
        ("a\na\nb\nb\n", ("a", "b"), 2),  # PBS_NODEFILE
        ("10.0.0.1\n", ("10.0.0.1",), None),
        ("\ufeffnode1\nnode2\n", ("node1", "node2"), None),  # an editor's byte order mark
        ("node1 max_slots=4 slots=2\n", ("node1",), 2),
        ("node1:2 slots=2\r\n", ("node1",), 2),
        ("localhost:4\n", ("localhost",), 4),
    ],
)
def test_host_files(tmp_path, text, hosts, slots):
    path = tmp_path / "hosts"
    path.write_text(text)
    assert read_hostfile(path) == (hosts, slots)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "names no host"),
        ("node1\n-oProxyCommand=evil\n", "line 2: '-oProxyCommand=evil' is not a host name"),
        ("node1; rm -rf /\n", "line 1"),
        ("a:2\nb:3\n", "the same number of ranks (a 2, b 3)"),
        ("http://a\n", "'//a' is not a number of ranks"),
        ("a slots=1.5\n", "'1.5' is not a number of ranks"),
        ("A:2\na:2\n", "a is on lines 1 and 2"),
        ("Localhost\nb\n", "every host calls itself Localhost"),
        ("a:0\n", "line 1: 'a:0': the number of ranks must be at least 1"),
        ("a slots=0\n", "line 1: 'slots=0': the number of ranks must be at least 1"),
        ("a max-slots=4 slots=-1\n", "'slots=-1': the number of ranks must be at least 1"),
        ("a:\n", "line 1: 'a:': '' is not a number of ranks"),
        ("a:2 slots=4\n", "line 1: 'a:2 slots=4' contradicts itself"),
        ("a slots=4 max_slots=2\n", "contradicts itself"),
        ("a slots=2\nb slots=2\na slots=2\n", "a is on lines 1 and 3 with a number of ranks"),
        ("a\na:2\n", "lines 1 and 2"),
        ("a port=22\n", "'port=22' is not supported"),
        ("a\nme@b\n", "line 2: 'me@b' names a user"),
        ("fe80::1\n", "'fe80::1' is an IPv6 address"),
        ("[::1]:2\n", "'[::1]:2' is an IPv6 address"),
        ("node[01-03,07]\n", "scontrol show hostnames"),
        ("node1 node2\n", "'node1 node2' is not a host name"),
        ("localhost\n127.0.0.1\n", "line 1: every host calls itself localhost"),
        ("node1\nlocalhost\n", "line 2: every host calls itself localhost"),
    ],
)
def test_host_files_that_are_wrong(tmp_path, text, part):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_hostfile(path)
    assert part in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_hostfile(tmp_path / "none")


def fake(folder, monkeypatch, version):
    """An mpirun that prints this version, first on PATH."""
    program = folder / "mpirun"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(commands, "find", lambda name: str(folder / name))
    return program


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            "Intel(R) MPI Library for Linux* OS, Version 2021.18",
            "mpiexec.hydra -hosts node1,node2 -n 8 -ppn 4 python -m intel_ft train run.yaml",
        ),
        (
            "HYDRA build details:\n Version: 4.2",
            "mpirun -hosts node1:4,node2:4 -n 8 -bind-to none python -m intel_ft train run.yaml",
        ),
    ],
)
def test_commands_of_the_hydra_family(tmp_path, monkeypatch, version, expected):
    fake(tmp_path, monkeypatch, version)
    command = commands.command(TWO_HOSTS, "mpirun")
    assert shlex.join(command.arguments) == f"{tmp_path}/{expected}"


def test_open_mpi_is_told_what_to_forward(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "mpirun (Open MPI) 4.1.4")
    monkeypatch.setenv("HF_HOME", "/shared/hf")
    monkeypatch.setenv("MY_SECRET", "1")
    text = shlex.join(commands.command(TWO_HOSTS, "mpirun").arguments)
    assert "--host node1:4,node2:4 --map-by ppr:4:node" in text
    assert "--bind-to none" in text
    assert "-x HF_HOME" in text
    assert "MY_SECRET" not in text
    assert text.endswith("-np 8 python -m intel_ft train run.yaml")


def test_another_ssh_reaches_every_launcher(tmp_path, monkeypatch):
    job = Job(PROGRAM, ("node1",), 1, "node1:29500", ssh="/opt/ssh")
    for version in ("Intel(R) MPI", "Open MPI", "HYDRA"):
        fake(tmp_path, monkeypatch, version)
        command = commands.command(job, "mpirun")
        assert "/opt/ssh" in [*command.arguments, *command.environment.values()]


def test_an_unknown_mpirun_is_named(tmp_path, monkeypatch):
    program = fake(tmp_path, monkeypatch, "usage: what")
    with pytest.raises(EnvironmentProblem, match=f"{program} is not from Intel MPI"):
        commands.command(TWO_HOSTS, "mpirun")


def test_accelerate_needs_hosts_because_it_starts_one_process_without(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "Intel(R) MPI")
    with pytest.raises(UserError, match="starts a single process"):
        commands.command(Job(PROGRAM, (), 2, "127.0.0.1:1"), "accelerate")


def test_accelerate_runs_no_other_mpirun_than_the_one_that_was_named(tmp_path, monkeypatch):
    program = fake(tmp_path, monkeypatch, "Open MPI").rename(tmp_path / "mpirun.openmpi")
    job = replace(TWO_HOSTS, mpirun=str(program))
    with pytest.raises(EnvironmentProblem, match="has another name"):
        commands.command(job, "accelerate")


@pytest.mark.parametrize(
    ("version", "lines"),
    [("Intel(R) MPI", "node1\nnode3\n"), ("Open MPI", "node1 slots=2\nnode3 slots=2\n")],
)
def test_accelerate_gets_the_hosts_that_are_left(tmp_path, monkeypatch, version, lines):
    """Not the user's file, which has node2 and may have `name:2`, which not every MPI reads."""
    fake(tmp_path, monkeypatch, version)
    job = Job(PROGRAM, ("node1", "node3"), 2, "node1:29500")
    command = commands.command(job, "accelerate", tmp_path / "logs")
    ((path, text),) = command.files.items()
    assert (path, text) == (tmp_path / "logs/hosts", lines)
    assert f"--mpirun_hostfile {path} " in shlex.join(command.arguments)
    if version == "Open MPI":
        return
    command = replace(command, arguments=("grep", "-c", "node", str(path)))
    assert supervise(command, tmp_path / "logs") == 0  # it is there when the command runs


def test_forwarded_names_exist(monkeypatch):
    for name in ("OMP_PLACES", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert {"OMP_PLACES", "GOMP_SPINCOUNT", "PATH"} <= set(forwarded())
    assert "LD_PRELOAD" not in forwarded()


def request(tmp_path, via, **more):
    values = {
        "config": tmp_path / "a run.yaml",
        "overrides": ("train.max_steps=3",),
        "run": tmp_path / "Out 1",
        "train": (),
        "hostfile": None,
        "ranks_per_host": 2,
        "via": via,
        "ssh": "ssh",
        "mpirun": None,
        "max_restarts": 1,
        "elastic": False,
    }
    return Request(**values | more)


@pytest.mark.parametrize("via", ["slurm", "pbs"])
def test_job_scripts_are_shell_and_resume(tmp_path, via):
    text = scheduler_jobs.render(request(tmp_path, via), nodes=4, image="")
    checked = subprocess.run(
        ["bash", "-n"], input=text, text=True, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "--resume" in text
    assert f"'{tmp_path}/a run.yaml' train.max_steps=3" in text
    assert ("--ranks 8" in text) == (via == "slurm")
    assert ("select=4" in text) == (via == "pbs")


def test_the_folder_that_a_scheduler_writes_to_is_there(tmp_path, monkeypatch):
    """It opens the job's output before the script runs, which could make it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    for via in ("slurm", "pbs"):
        folder = f"runs {via}"
        done = CliRunner().invoke(
            app, ["launch", "run.yaml", f"output.directory={folder}/a/b", "--via", via, "-o", "job"]
        )
        assert done.exit_code == 0, done.output
        text = (tmp_path / "job").read_text()
        expected = re.search(r"(?m)^#(?:SBATCH --output=|PBS -o )(.*)$", text)
        assert Path(shlex.split(expected[1], comments=False)[0]).parent.is_dir()
        assert f"# Submit: mkdir -p '{folder}/a' && " in text
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot create"):
        scheduler_jobs.make_folder(request(tmp_path, "slurm", run=Path("file/run")))


def test_a_job_that_cannot_be_submitted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "run.yaml").write_text(CONFIG)
    command = ["launch", "run.yaml", "--via", "slurm", "-o", "job.sh", "--submit"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, EnvironmentProblem)
    assert str(done.exception).startswith("sbatch cannot be run (No such file or directory)")


def test_srun_sets_no_pmi(tmp_path):
    assert "\nsrun --mpi=none " in scheduler_jobs.render(request(tmp_path, "slurm"), 2)


def test_jobs_have_as_many_ranks_as_were_measured_best(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler_jobs, "chosen_ranks", lambda *_: (3, "measured"))
    free = request(tmp_path, "slurm", ranks_per_host=None)
    assert "--ntasks-per-node=3\n" in scheduler_jobs.render(free, 2)
    assert "--ntasks-per-node=2\n" in scheduler_jobs.render(request(tmp_path, "slurm"), 2)


def test_kubernetes_manifests(tmp_path):
    text = scheduler_jobs.render(request(tmp_path, "k8s"), nodes=3, image="registry.example/ft:1")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob")
    assert job["metadata"]["name"] == "out-1"
    roles = job["spec"]["mpiReplicaSpecs"]
    assert (roles["Worker"]["replicas"], job["spec"]["slotsPerWorker"]) == (3, 2)
    assert job["spec"]["launcherCreationPolicy"] == "WaitForWorkersReady"
    command = roles["Launcher"]["template"]["spec"]["containers"][0]["command"]
    assert command[:2] == ["intel-ft", "launch"]
    assert "/etc/mpi/hostfile" in command
    trainer = yaml.safe_load(scheduler_jobs.render(request(tmp_path, "k8s-trainjob"), 3, "i"))[
        "spec"
    ]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 2)
    assert trainer["command"][-2:] == ["--ranks", "6"]


def test_images_that_nobody_named_are_those_of_the_documentation(tmp_path):
    documented = re.findall(r"-t (\S+) \.", (ROOT / "docker/README.md").read_text())
    for via in ("k8s", "k8s-trainjob"):
        text = scheduler_jobs.render(request(tmp_path, via), 3)
        assert (
            set(re.findall(r"image: (\S+)", text))
            == {scheduler_jobs.IMAGES[via]}
            <= set(documented)
        )
        assert "shared" in text.split("apiVersion")[0]  # what holds the config and the data


@pytest.mark.parametrize(("via", "schema"), [("k8s", MPIJob), ("k8s-trainjob", TrainJob)])
def test_kubernetes_manifests_hold_what_the_published_schemas_know(via, schema, tmp_path):
    job = yaml.safe_load(scheduler_jobs.render(request(tmp_path, via), 3, "registry.example/ft:1"))
    schema.model_validate(job)
    job["spec"]["slotPerWorker"] = 2  # a server would drop it
    with pytest.raises(ValidationError, match="slotPerWorker"):
        schema.model_validate(job)


def test_jobs_choose_their_own_hosts_and_keep_what_is_done(tmp_path):
    with pytest.raises(UserError, match="chooses the hosts"):
        scheduler_jobs.render(request(tmp_path, "slurm", hostfile=tmp_path / "h"), 2, "")
    with pytest.raises(UserError, match="--overwrite"):
        scheduler_jobs.render(request(tmp_path, "pbs", train=("--overwrite",)), 2, "")


def report(host, **more):
    values = {"python": "3.11", "packages": {"torch": "2.13.0"}, "config": "a", "base": "b"}
    return {"host": host, "boot": "1", "problem": None, "time": 1000.0, **values, **more}


@pytest.mark.parametrize(
    ("reports", "error", "part"),
    [
        ([report("n1")], EnvironmentProblem, "2 hosts were started, but only 1 reported (n1)"),
        ([report("n1"), report("n2", problem="no data")], UserError, "on n2: no data"),
        (
            [report("n1"), report("n2", packages={"torch": "2.8.0"})],
            EnvironmentProblem,
            "n1 and n2 do not have the same package versions: torch 2.13.0 and 2.8.0",
        ),
        ([report("n1"), report("n2", base="c")], EnvironmentProblem, "same base model: b and c"),
        ([report("n1"), report("n2", time=1100.0)], EnvironmentProblem, "100 s apart"),
        ([report("n1"), report("n1")], UserError, "the same host, n1"),  # by two of its names
    ],
)
def test_hosts_that_differ_are_named(reports, error, part):
    with pytest.raises(error) as raised:
        preflight.compare(reports, 2)
    assert part in str(raised.value)
    preflight.compare([report("n1"), report("n2", time=1003.0)], 2)
    preflight.compare([report("localhost"), report("localhost", boot="2")], 2)


def test_a_model_folder_is_known_by_its_content(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(300_000))
    (tmp_path / "config.json").write_text("{}")
    before = preflight.fingerprint(str(tmp_path))
    assert preflight.fingerprint(str(tmp_path)) == before
    (tmp_path / "config.json").write_text("[]")
    assert preflight.fingerprint(str(tmp_path)) != before
    assert preflight.fingerprint("org/name") == "org/name"


def test_an_ssh_that_is_not_there():
    with pytest.raises(EnvironmentProblem, match="no-such-ssh was not found"):
        preflight.unreachable_hosts(("node1",), "no-such-ssh")


@pytest.mark.parametrize(
    ("exit_code", "printed"),
    [(130, ""), (1, ""), (-9, "error: rank 1 was ended by SIGKILL\n")],
)
def test_torchrun_adds_no_report_to_what_ranks_printed(exit_code, printed, monkeypatch, capsys):
    failure = ProcessFailure(1, 7, exit_code, "<N/A>")

    def failing(arguments):
        assert arguments == ["--standalone"]
        raise ChildFailedError("train", {1: failure})

    monkeypatch.setattr(torch.distributed.run, "main", failing)
    with pytest.raises(SystemExit) as ended:
        torchrun.main(["--standalone"])
    assert (ended.value.code, capsys.readouterr().err) == (1, printed)


@pytest.mark.parametrize("error", [Stopped(2, "SIGINT: saved"), KeyboardInterrupt()])
def test_ranks_that_stop_together_print_one_line(error, monkeypatch):
    printed = []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        printed.append(not main._is_printed_elsewhere(error))
        assert not main._is_printed_elsewhere(UserError("of this rank alone"))
    assert printed == [True, False, False]
