"""The world a launcher gave this process: which rank it is, and what ranks say to each other;
called from training.

A world of one rank is alone: what it says to the others is nothing, and needs no process group.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from intel_ft.errors import EnvironmentProblem, FailedElsewhere, IntelFTError


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
    _Launcher("torchrun or accelerate", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Launcher("Intel MPI or MPICH", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
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
class World:
    """rank 0 to size - 1, local_rank 0 to local_size - 1 on its host. A single process is rank 0
    of 1.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "none"

    def sum(self, tensor: Tensor) -> Tensor:
        """Each element's sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor on all ranks, in place."""
        return self.sum(tensor if self.rank == 0 else tensor.zero_())

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor([number])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.size > 1:
            dist.barrier()

    def require_same(self, text: str, problem: str) -> None:
        """Raise EnvironmentProblem(problem) unless all ranks have the same text."""
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        if self.largest(number) != number or -self.largest(-number) != number:
            raise EnvironmentProblem(problem)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside on one rank fails on all; the first rank that failed says why."""
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        codes = torch.zeros(self.size, dtype=torch.int64)
        if error is not None:
            codes[self.rank] = error.exit_code if isinstance(error, IntelFTError) else 1
        failed = self.sum(codes).nonzero().flatten().tolist()
        if error is not None and failed[0] == self.rank:
            raise error
        if failed:
            raise FailedElsewhere(int(codes[failed[0]]), failed[0])

    @contextmanager
    def host_by_host(self) -> Iterator[None]:
        """The first rank of each host goes in alone; the others find what it left in caches."""
        if self.local_rank:
            self.barrier()
        try:
            yield
        finally:
            if not self.local_rank:
                self.barrier()


def started_as(environment: Mapping[str, str] = os.environ) -> World:
    """The world that the launcher's variables tell of. Raises EnvironmentProblem where they make no
    sense or two launchers contradict each other.

    Several copies of a run that do not know of each other would train that many separate models
    into one folder.
    """
    present = [launcher for launcher in _LAUNCHERS if environment.get(launcher.size)]
    if not present:
        return World()
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


def _world(environment: Mapping[str, str], launcher: _Launcher) -> World:
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
        return World(launcher=launcher.name)
    rank = number(launcher.rank, None)
    # A launcher that says nothing of hosts is taken to have one.
    local_rank = number(launcher.local_rank, str(rank))
    local_size = number(launcher.local_size, str(size))
    if not (rank < size and local_rank < local_size <= size):
        raise EnvironmentProblem(
            f"started by {launcher.name} as rank {rank} of {size}, {local_rank} of {local_size} on "
            "its host: that cannot be"
        )
    return World(rank, size, local_rank, local_size, launcher.name)
