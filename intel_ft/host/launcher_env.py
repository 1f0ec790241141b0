"""The place that a launcher gave this process, read from its environment; called from training,
distributed and cli. Imports nothing heavy, because a rank is bound to its cores before torch loads.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from intel_ft.errors import EnvironmentProblem

TORCHRUN = "torchrun or accelerate"
INTEL_MPI = "Intel MPI or MPICH"


class _Launcher(NamedTuple):
    """The environment variables in which a launcher tells a process its place."""

    name: str
    size: str
    rank: str
    local_rank: str
    local_size: str


# The first that is present has the say: torchrun may run inside of mpirun or srun, and mpirun
# starts its own helpers with srun.
_LAUNCHERS = (
    _Launcher(TORCHRUN, "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Launcher(INTEL_MPI, "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", ""),
)


@dataclass(frozen=True)
class LauncherEnv:
    """rank 0 to size - 1, local_rank 0 to local_size - 1 on its host. A single process is rank 0
    of 1.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "none"


def launcher_env_of(environment: Mapping[str, str] = os.environ) -> LauncherEnv:
    """The world that the launcher's variables tell of. Raises EnvironmentProblem where they make no
    sense or two launchers contradict each other.

    Several copies of a run that do not know of each other would train that many separate models
    into one folder.
    """
    present = [
        launcher
        for launcher in _LAUNCHERS
        if environment.get(launcher.size) and not _is_slurms(launcher, environment)
    ]
    if not present:
        return LauncherEnv()
    world = _world(environment, present[0])
    nested = "TORCHELASTIC_RUN_ID" in environment
    for launcher in present[1:]:
        size = environment[launcher.size]
        if launcher.name != "srun" and not nested and size != str(world.size):
            raise EnvironmentProblem(
                f"{launcher.name} started {size} ranks ({launcher.size}), but "
                f"{present[0].size}={world.size}: unset the one that is not meant"
            )
    return world


def _is_slurms(launcher: _Launcher, environment: Mapping[str, str]) -> bool:
    """Whether srun set this launcher's variables: `--mpi=pmi2`, a cluster's default perhaps, gives
    Intel MPI's rank and size and says nothing of hosts.
    """
    srun = "SLURM_STEP_NUM_TASKS" in environment
    return srun and launcher.size == "PMI_SIZE" and launcher.local_size not in environment


def _world(environment: Mapping[str, str], launcher: _Launcher) -> LauncherEnv:
    def number(name: str, default: str | None) -> int:
        value = environment.get(name, default)
        if value is None or not value.isdigit():
            raise EnvironmentProblem(
                f"started by {launcher.name}, but {name} is {value or 'not set'}: start the ranks "
                "with one launcher, or unset its variables"
            )
        return int(value)

    size = number(launcher.size, None)
    if size == 1:
        return LauncherEnv(launcher=launcher.name)
    rank = number(launcher.rank, None)
    # A launcher that says nothing of hosts is taken to have one.
    local_rank = number(launcher.local_rank, str(rank))
    if launcher.name == "srun":
        local_size = _on_slurm_node(environment, size)
    else:
        local_size = number(launcher.local_size, str(size))
    if not (rank < size and local_rank < local_size <= size):
        raise EnvironmentProblem(
            f"started by {launcher.name} as rank {rank} of {size}, {local_rank} of {local_size} on "
            "its host: that cannot be"
        )
    return LauncherEnv(rank, size, local_rank, local_size, launcher.name)


def _on_slurm_node(environment: Mapping[str, str], size: int) -> int:
    """Tasks of this node, from a list such as `2(x3),1`, which has an entry for each node."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", str(size)).split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[int(environment.get("SLURM_NODEID", "0"))]
