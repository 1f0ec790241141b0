"""The world a launcher gave this process; called from training.

Launchers say it in environment variables: torchrun and accelerate (WORLD_SIZE), Intel MPI and MPICH
(PMI_SIZE), Open MPI (OMPI_COMM_WORLD_SIZE), Slurm's srun (SLURM_STEP_NUM_TASKS).
"""

import os
from dataclasses import dataclass

from intel_ft.errors import EnvironmentProblem

_LAUNCHERS = (
    ("torchrun or accelerate", "WORLD_SIZE"),
    ("Intel MPI or MPICH", "PMI_SIZE"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE"),
    ("srun", "SLURM_STEP_NUM_TASKS"),
)


@dataclass(frozen=True)
class World:
    """rank 0 to size - 1; a single process is rank 0 of 1."""

    rank: int = 0
    size: int = 1


def require_one() -> World:
    """The world of one rank; EnvironmentProblem where a launcher started more.

    Several copies of a run that do not know of each other would train that many separate models
    into one folder.
    """
    for launcher, size_name in _LAUNCHERS:
        size = os.environ.get(size_name, "1")
        if size.isdigit() and int(size) > 1:
            raise EnvironmentProblem(
                f"started as {size} ranks by {launcher} ({size_name}={size}), but this version "
                "trains on one rank: start it without the launcher"
            )
    return World()
