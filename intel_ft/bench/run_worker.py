"""Runs one contender once, in one process or in several that share the cores of this host."""

import os
from dataclasses import replace
from typing import Any

from intel_ft import subprocess_json
from intel_ft.bench.task import Task, python_of
from intel_ft.distributed.launch.commands import command
from intel_ft.distributed.launch.job_spec import Job
from intel_ft.distributed.launch.launcher import free_port
from intel_ft.errors import UserError
from intel_ft.host import topology
from intel_ft.plurals import count_of

_WORKER = "intel_ft.bench.worker"
_RANK_WORKER = "intel_ft.bench.rank_worker"


def with_threads(task: Task) -> Task:
    """The task with the number of threads for each process, if it has several.

    Raises UserError if this process does not have enough cores.
    """
    if task.processes == 1:
        subprocess_json.thread_environment(task.threads)
        return task
    cores = topology.read().usable
    threads = task.threads or cores // task.processes
    if threads < 1 or threads * task.processes > cores:
        each = f" of {task.threads} threads" if task.threads else ""
        raise UserError(
            f"{count_of(task.processes, 'process', 'processes')}{each}: this process may use "
            f"{count_of(cores, 'core')}"
        )
    return replace(task, threads=threads)


def run_task(task: Task) -> dict[str, Any]:
    """Run a task of `with_threads` in fresh processes; all contenders get the same environment."""
    if task.processes > 1:
        return run_ranks(task, "mpirun")
    return _run(task, _WORKER, subprocess_json.thread_environment(task.threads))


def run_ranks(task: Task, via: str) -> dict[str, Any]:
    """Run the task as ranks of `task.threads` cores each, started by a real launcher.

    Each rank is bound to its own cores. Cores that are not needed stay idle.
    """
    port = free_port()
    start = command(Job((), (), task.processes, f"127.0.0.1:{port}"), via)
    environment = {**os.environ, **start.environment, "OMP_NUM_THREADS": str(task.threads)}
    if via == "mpirun":
        environment["MASTER_PORT"] = str(port)
    return _run(task, _RANK_WORKER, environment, start.arguments)


def _run(
    task: Task, module: str, environment: dict[str, str], launcher: tuple[str, ...] = ()
) -> dict[str, Any]:
    load = os.getloadavg()[0]
    if task.backend == "cpu":  # without it TRL's ranks use GPUs even with `use_cpu`
        environment = {**environment, "CUDA_VISIBLE_DEVICES": ""}
    name, python = f"bench {task.contender}", python_of(task.contender)
    result = subprocess_json.run_module(
        name, module, [task.to_json()], environment, launcher, python
    )
    return {**result, "load1": load}
