"""One run of one side: a process, or several that share the cores of this host; called from
insight's bench modules.
"""

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

_SIDE = "intel_ft.bench.worker"
_RANK = "intel_ft.bench.rank_worker"


def placed(task: Task) -> Task:
    """The task with the threads of each of its processes, where there are several. Raises UserError
    for more than this process's cores hold.
    """
    if task.processes == 1:
        subprocess_json.environment(task.threads)
        return task
    cores = topology.read().usable
    threads = task.threads or cores // task.processes
    if threads < 1 or threads * task.processes > cores:
        asked = f" of {task.threads} threads" if task.threads else ""
        raise UserError(f"{task.processes} processes{asked}: this process may use {cores} cores")
    return replace(task, threads=threads)


def run_task(task: Task) -> dict[str, Any]:
    """One run of a `placed` task in fresh processes; all sides get the same environment."""
    if task.processes > 1:
        return run_ranks(task, "mpirun")
    return _measured(task, _SIDE, subprocess_json.environment(task.threads))


def run_ranks(task: Task, via: str) -> dict[str, Any]:
    """The task by ranks of `task.threads` cores each, through a real launcher: each is bound to
    its own, and where they are fewer than the host's the others stay idle.
    """
    port = free_port()
    start = command(Job((), (), task.processes, f"127.0.0.1:{port}"), via)
    environment = {**os.environ, **start.environment, "OMP_NUM_THREADS": str(task.threads)}
    if via == "mpirun":
        environment["MASTER_PORT"] = str(port)
    return _measured(task, _RANK, environment, start.arguments)


def _measured(
    task: Task, module: str, environment: dict[str, str], launcher: tuple[str, ...] = ()
) -> dict[str, Any]:
    load = os.getloadavg()[0]
    if task.backend == "cpu":  # else ranks of TRL take a GPU each, `use_cpu` or not
        environment = {**environment, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess_json.measured(
        task.contender, module, [task.to_json()], environment, launcher, python_of(task.contender)
    )
    return {**result, "load1": load}
