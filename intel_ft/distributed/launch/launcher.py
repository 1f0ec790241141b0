"""`launch` from start to end: check hosts, start ranks, supervise them, restart after failures."""

import logging
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intel_ft import config as configuration
from intel_ft.config import Config
from intel_ft.decisions import Decision
from intel_ft.distributed.launch import preflight
from intel_ft.distributed.launch.commands import Command, command
from intel_ft.distributed.launch.hostfile import read_hostfile
from intel_ft.distributed.launch.job_spec import Job
from intel_ft.distributed.launch.run_on_hosts import run_on_hosts
from intel_ft.distributed.launch.supervise import FINAL_EXIT_CODES, supervise
from intel_ft.distributed.launch.tune_ranks import chosen_ranks, tuned_ranks
from intel_ft.errors import EnvironmentProblem
from intel_ft.host import topology

_REPORT_TIMEOUT = 180  # seconds for all hosts to report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """The options of `launch`. run: the run's folder; train: the arguments of `train`."""

    config: Path
    overrides: tuple[str, ...]
    run: Path
    train: tuple[str, ...]
    hostfile: Path | None
    ranks_per_host: int | None
    via: str
    ssh: str
    mpirun: str | None
    max_restarts: int
    elastic: bool

    def settings(self) -> Config | None:
        """The run's config; None where the file is not here."""
        if not self.config.is_file():
            return None
        return configuration.load(self.config, list(self.overrides))


def launch(request: Request) -> int:
    """Start the run, supervise it to its end, and return the exit code.

    Raises UserError or EnvironmentProblem before anything is started.
    """
    train = request.train
    for attempt in range(request.max_restarts + 1):
        job, decisions = prepare(replace(request, train=train), check=True)
        for decision in decisions if attempt == 0 else []:
            logger.info("%s", decision)
        code = supervise(launch_command(request, job), log_folder(request))
        if code in FINAL_EXIT_CODES:
            return code
        if attempt < request.max_restarts:
            logger.warning(
                "the run ended with exit code %d: "
                "restart %d of %d, from the latest complete checkpoint",
                code,
                attempt + 1,
                request.max_restarts,
            )
            train = ("--resume", *(option for option in request.train if option == "--json"))
    logger.error(
        "the run ended with exit code %d: the ranks' logs are in %s; --resume continues from the "
        "latest complete checkpoint",
        code,
        log_folder(request),
    )
    return code


def prepare(request: Request, *, check: bool) -> tuple[Job, list[Decision]]:
    """The job to start now, and the decisions for it. check: look at the hosts first."""
    hosts, slots = read_hostfile(request.hostfile) if request.hostfile else ((), None)
    decisions = []
    if hosts and check:
        hosts = _reachable(hosts, request)
    reports = _reports(hosts, request) if hosts and check else []
    ranks, why = _ranks(request, slots, reports)
    decisions.append(Decision("ranks per host", str(ranks), why))
    port = reports[0]["port"] if reports else free_port()
    master = f"{hosts[0] if hosts else '127.0.0.1'}:{port}"
    decisions.append(
        Decision("master", master, "the first host" if hosts else "all ranks are on this host")
    )
    job = Job((), hosts, ranks, master, request.ssh, request.mpirun)
    return replace(job, program=_program(request, job)), decisions


def launch_command(request: Request, job: Job) -> Command:
    """The command line of the launcher for the job."""
    return command(job, request.via, log_folder(request))


def log_folder(request: Request) -> Path:
    """The folder of the ranks' logs, next to the run's folder, which may be missing or replaced."""
    return request.run.with_name(f"{request.run.name}.logs")


def _program(request: Request, job: Job) -> tuple[str, ...]:
    program = [sys.executable, "-m", "intel_ft", "train", str(request.config), *request.overrides]
    program += [*request.train, "--ranks", str(job.ranks), "--master", job.master]
    return (*program, "--logs", str(log_folder(request)))


def _ranks(request: Request, slots: int | None, reports: list[dict[str, Any]]) -> tuple[int, str]:
    if request.ranks_per_host is not None:
        return request.ranks_per_host, "set on the command line"
    if slots is not None:
        return slots, "set in the host file"
    host, settings = topology.read(), request.settings()
    if settings is not None and (measured := tuned_ranks(host, settings)) is not None:
        return measured
    if reports and (reports[0]["nodes"], reports[0]["cores"]) != (len(host.nodes), host.usable):
        return reports[0]["nodes"], f"one for each NUMA node of {reports[0]['host']}"
    return chosen_ranks(host, settings)


def _reachable(hosts: tuple[str, ...], request: Request) -> tuple[str, ...]:
    problems = preflight.unreachable_hosts(hosts, request.ssh)
    unreachable = {problem.partition(" ")[0] for problem in problems}
    reachable = tuple(host for host in hosts if host not in unreachable)
    if problems and not (request.elastic and reachable):
        remedy = "" if request.elastic else ": use --elastic to start without them"
        raise EnvironmentProblem(f"unreachable hosts: {', '.join(problems)}{remedy}")
    if problems:
        logger.warning("starting without unreachable hosts: %s", ", ".join(problems))
    return reachable


def _reports(hosts: tuple[str, ...], request: Request) -> list[dict[str, Any]]:
    """The report of each host, the first host's first, after comparing them."""
    program = [sys.executable, "-m", "intel_ft.distributed.launch.preflight", str(request.config)]
    program += request.overrides
    job = Job(tuple(program), hosts, 1, "", request.ssh, request.mpirun)
    via = "mpirun" if request.via == "accelerate" else request.via
    reports = run_on_hosts(job, via, _REPORT_TIMEOUT)
    preflight.compare(reports, len(hosts))
    first = next((report for report in reports if _same_host(report["host"], hosts[0])), reports[0])
    return [first, *(report for report in reports if report is not first)]


def _same_host(name: str, other: str) -> bool:
    return name.partition(".")[0] == other.partition(".")[0]


def free_port() -> int:
    """A port that is free on this host now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
