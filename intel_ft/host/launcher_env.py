"""Rank and world size from launcher variables.

Imports nothing heavy, because a rank is bound to its cores before torch loads.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

from intel_ft.errors import EnvironmentProblem

TORCHRUN = "torchrun or accelerate"
INTEL_MPI = "Intel MPI or MPICH"
OPEN_MPI = "Open MPI"
SRUN = "srun"


class _Variables(NamedTuple):
    """The environment variables in which a launcher tells a process its rank."""

    launcher: str
    size: str
    rank: str
    local_rank: str
    local_size: str


# The first launcher whose variables are set decides: torchrun may run inside mpirun or srun, and
# mpirun starts its own helpers with srun.
_LAUNCHERS = (
    _Variables(TORCHRUN, "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Variables(INTEL_MPI, "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Variables(
        OPEN_MPI,
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Variables(SRUN, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", ""),
)


@dataclass(frozen=True)
class LauncherEnv:
    """The rank of this process and the world size, in the job and on this host.

    rank: 0 to size - 1. local_rank: 0 to local_size - 1. A single process is rank 0 of 1.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "none"

    @classmethod
    def detect(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the launcher's variables.

        Processes that do not know of each other would each train a separate model into the same
        folder. Raises EnvironmentProblem where a variable is invalid or missing, or where two
        launchers contradict each other.
        """
        present = [
            variables
            for variables in _LAUNCHERS
            if environment.get(variables.size) and not _set_by_srun(variables, environment)
        ]
        if not present:
            return cls()
        first, *others = present
        size = _number(environment, first, first.size)
        nested = "TORCHELASTIC_RUN_ID" in environment
        for other in others:
            other_size = environment[other.size]
            if other.launcher != SRUN and not nested and other_size != str(size):
                raise EnvironmentProblem(
                    f"{other.launcher} set {other.size}={other_size}, but {first.launcher} set "
                    f"{first.size}={size}: unset the wrong variable"
                )
        if size == 1:
            return cls(launcher=first.launcher)
        rank = _number(environment, first, first.rank)
        # A launcher that does not report hosts is assumed to use one.
        local_rank = _number(environment, first, first.local_rank, default=rank)
        if first.launcher == SRUN:
            local_size = _tasks_on_this_node(environment, size)
        else:
            local_size = _number(environment, first, first.local_size, default=size)
        if not (rank < size and local_rank < local_size <= size):
            raise EnvironmentProblem(
                f"inconsistent variables of {first.launcher}: rank {rank} of {size} "
                f"({first.rank}, {first.size}), local rank {local_rank} of {local_size}: start the "
                "ranks with one launcher, or unset the variables that an earlier one left"
            )
        return cls(rank, size, local_rank, local_size, first.launcher)


def _set_by_srun(variables: _Variables, environment: Mapping[str, str]) -> bool:
    """Whether srun set these variables.

    `--mpi=pmi2`, which may be the cluster's default, sets Intel MPI's rank and size, but not its
    local rank and size.
    """
    srun = "SLURM_STEP_NUM_TASKS" in environment
    return srun and variables.size == "PMI_SIZE" and variables.local_size not in environment


def _number(
    environment: Mapping[str, str], variables: _Variables, name: str, *, default: int | None = None
) -> int:
    value = environment.get(name, None if default is None else str(default))
    if value is None or not value.isdigit():
        raise EnvironmentProblem(
            f"this process was started by {variables.launcher}, but {name} is "
            f"{value or 'not set'}: start the ranks with one launcher, or unset the variables of "
            "the others"
        )
    return int(value)


def _tasks_on_this_node(environment: Mapping[str, str], size: int) -> int:
    """Slurm tasks on this node, from a list with an entry for each node, such as `2(x3),1`."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE", str(size))
    node = environment.get("SLURM_NODEID", "0")
    counts: list[int] = []
    try:
        for part in text.split(","):
            count, _, times = part.partition("(x")
            counts += [int(count)] * int(times.rstrip(")") or 1)
        return counts[int(node)]
    except (ValueError, IndexError):
        raise EnvironmentProblem(
            f"srun started this process, but SLURM_STEP_TASKS_PER_NODE={text} has no number for "
            f"SLURM_NODEID={node}: start the ranks with one launcher, or unset the variables that "
            "an earlier one left"
        ) from None
