"""A job as the command line of a launcher.

Binding by the launcher is turned off: each rank binds itself (distributed.binding), which works the
same way under all launchers, and where hosts differ. Flags: Intel MPI's Developer Reference,
mpirun(1) of Open MPI 4 and 5, the Hydra page of MPICH's wiki, `torchrun --help`, `accelerate launch
--help`.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from intel_ft.distributed.launch.job_spec import Job, forwarded
from intel_ft.errors import EnvironmentProblem, UserError


@dataclass(frozen=True)
class Command:
    """A command line, its environment variables, and files to write before it runs.

    files: the text of each, by path.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]
    launcher: str
    files: dict[Path, str] = field(default_factory=dict)


def command(job: Job, via: str, folder: Path = Path()) -> Command:
    """The command for `via`: mpirun, accelerate or torchrun; `folder` is for files that it needs.

    Raises EnvironmentProblem if the launcher is not installed.
    """
    if via == "torchrun":
        return _torchrun(job)
    program = job.mpirun or find("mpirun")
    flavour = mpi_flavour(program)
    if via == "accelerate":
        return _accelerate(job, program, flavour, folder / "hosts")
    return {"Intel MPI": _intel_mpi, "Open MPI": _open_mpi, "MPICH": _mpich}[flavour](job, program)


def find(name: str) -> str:
    """The path of a launcher: next to this Python, as in Intel MPI's wheel, else on PATH."""
    next_to_python = Path(sys.executable).parent / name
    program = str(next_to_python) if next_to_python.exists() else shutil.which(name)
    if program is None:
        raise EnvironmentProblem(
            f"{name} was not found: install Intel MPI (`pip install impi-rt`), Open MPI or MPICH, "
            "or use --via torchrun"
        )
    return program


def mpi_flavour(program: str) -> str:
    """Which MPI this mpirun belongs to."""
    try:
        done = subprocess.run(
            [program, "--version"],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | _wheel_environment(program),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(
            f"`{program} --version` failed ({error}): name another mpirun with --mpirun"
        ) from None
    text = done.stdout + done.stderr
    for mark, flavour in (
        ("Intel(R) MPI", "Intel MPI"),
        ("Open MPI", "Open MPI"),
        ("OpenRTE", "Open MPI"),
        ("HYDRA", "MPICH"),
    ):
        if mark in text:
            return flavour
    raise EnvironmentProblem(
        f"{program} is not from Intel MPI, Open MPI or MPICH (its --version prints "
        f"{' '.join(text.split())[:80]!r}): name another mpirun with --mpirun"
    )


def _wheel_environment(program: str) -> dict[str, str]:
    """The variables that Intel MPI from its wheel needs; oneAPI's setvars.sh sets them itself."""
    root = Path(program).parent.parent
    if not (root / "lib/libmpi.so.12").exists() or "I_MPI_ROOT" in os.environ:
        return {}
    return {"I_MPI_ROOT": str(root), "PATH": f"{root / 'bin'}:{os.environ.get('PATH', '')}"}


def _intel_mpi(job: Job, program: str) -> Command:
    # mpirun is a shell script around mpiexec.hydra, and does not forward signals.
    arguments = [str(Path(program).with_name("mpiexec.hydra"))]
    environment = _wheel_environment(program) | {"I_MPI_PIN": "off"}
    if job.hosts:
        environment["I_MPI_HYDRA_BOOTSTRAP"] = "ssh"
        if job.ssh != "ssh":
            environment["I_MPI_HYDRA_BOOTSTRAP_EXEC"] = job.ssh
        arguments += ["-hosts", ",".join(job.hosts)]
    arguments += ["-n", str(job.ranks), "-ppn", str(job.ranks_per_host)]
    return Command((*arguments, *job.program), environment, "Intel MPI")


def _mpich(job: Job, program: str) -> Command:
    arguments = [program]
    if job.hosts:
        arguments += ["-hosts", ",".join(f"{host}:{job.ranks_per_host}" for host in job.hosts)]
        if job.ssh != "ssh":
            arguments += ["-launcher", "ssh", "-launcher-exec", job.ssh]
    arguments += ["-n", str(job.ranks), "-bind-to", "none"]
    return Command((*arguments, *job.program), {}, "MPICH")


def _open_mpi(job: Job, program: str) -> Command:
    arguments = [program, "--bind-to", "none"]
    if os.geteuid() == 0:
        arguments.append("--allow-run-as-root")
    if job.hosts:
        # Without these it never notices an unreachable host; with them after 60 + 3 * 10 s.
        for name, seconds in (("time", 60), ("intvl", 10), ("probes", 3)):
            arguments += ["--mca", f"oob_tcp_keepalive_{name}", str(seconds)]
        arguments += ["--host", ",".join(f"{host}:{job.ranks_per_host}" for host in job.hosts)]
        arguments += ["--map-by", f"ppr:{job.ranks_per_host}:node"]
        if job.ssh != "ssh":
            arguments += ["--mca", "plm_rsh_agent", job.ssh]
        for name in forwarded():
            arguments += ["-x", name]
    else:
        arguments.append("--oversubscribe")  # else it limits the ranks to its own count of cores
    arguments += ["-np", str(job.ranks)]
    return Command((*arguments, *job.program), {}, "Open MPI")


def _accelerate(job: Job, program: str, flavour: str, hostfile: Path) -> Command:
    """Accelerate starts CPU ranks on several hosts through mpirun, and on a single host only one.

    It gets a new host file: the user's may name unreachable hosts, or use the form `name:2`, which
    not every MPI reads.
    """
    if not job.hosts:
        raise UserError(
            "--via accelerate needs --hostfile: without one Accelerate starts a single process, "
            "whatever --num_processes is: use --via mpirun or torchrun"
        )
    if Path(program).name != "mpirun":
        raise EnvironmentProblem(
            f"--via accelerate runs the first mpirun on PATH, and {program} has another name: use "
            "--via mpirun, or give --mpirun a link to it that is named mpirun"
        )
    host, _, port = job.master.rpartition(":")
    environment = _wheel_environment(program)
    environment["PATH"] = f"{Path(program).parent}:{os.environ.get('PATH', '')}"
    if flavour == "Intel MPI":
        environment |= {"I_MPI_PIN": "off", "I_MPI_HYDRA_BOOTSTRAP": "ssh"}
    if job.ssh != "ssh":
        name = "I_MPI_HYDRA_BOOTSTRAP_EXEC" if flavour == "Intel MPI" else "OMPI_MCA_plm_rsh_agent"
        environment[name] = job.ssh
    if flavour == "Open MPI":
        environment["OMPI_MCA_mca_base_env_list"] = ";".join(forwarded())
        if os.geteuid() == 0:
            environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    arguments = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines"]
    arguments += [str(len(job.hosts)), "--num_processes", str(job.ranks), "--main_process_ip", host]
    arguments += ["--main_process_port", port, "--mpirun_hostfile", str(hostfile)]
    arguments += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    # Accelerate puts its own Python before the program, which is `python -m intel_ft ...`.
    slots = f" slots={job.ranks_per_host}" if flavour == "Open MPI" else ""  # Intel MPI gets -ppn
    files = {hostfile: "".join(f"{host}{slots}\n" for host in job.hosts)}
    return Command((*arguments, *job.program[1:]), environment, f"accelerate, {flavour}", files)


def _torchrun(job: Job) -> Command:
    if job.hosts:
        raise UserError(
            "--via torchrun starts ranks only on this host: with a host file use --via mpirun, on "
            "a Slurm cluster --via slurm"
        )
    arguments = [sys.executable, "-m", "intel_ft.distributed.launch.torchrun", "--standalone"]
    # Without -- torchrun takes options of the program as abbreviations of its own.
    arguments += ["--nproc-per-node", str(job.ranks), "--no-python", "--"]
    return Command((*arguments, *job.program), {}, "torchrun")
