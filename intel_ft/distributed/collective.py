"""Which collective backend the ranks of a run use, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from intel_ft.config_sections import BackendConfig
from intel_ft.decisions import Decision
from intel_ft.errors import EnvironmentProblem
from intel_ft.host.launcher_env import INTEL_MPI

_NAME = "backend.collective"


@dataclass(frozen=True)
class Installed:
    """The collective backends that torch and this environment have, besides gloo.

    `why_no_oneccl` returns None where oneCCL can be used. It is called only where the choice
    depends on it, because it loads the library.
    """

    nccl: bool
    mpi: bool
    why_no_oneccl: Callable[[], str | None]

    @classmethod
    def detect(cls) -> Self:
        """What this process can use."""
        import torch.distributed as dist

        return cls(dist.is_nccl_available(), dist.is_mpi_available(), _why_no_oneccl)


def choose_collective(
    backend: BackendConfig, *, compute: str, launcher: str, installed: Installed
) -> Decision:
    """NCCL between GPUs; between CPUs MPI if torch has it, oneCCL under Intel MPI, else gloo.

    compute: the backend that `backends.choice` chose. launcher: `LauncherEnv.launcher`. Raises
    EnvironmentProblem where the config names a backend that is not installed.
    """
    if compute == "cuda":
        if not installed.nccl:
            raise EnvironmentProblem(
                "backend.name=cuda: this torch was built without NCCL, which several ranks need: "
                "install a CUDA build of torch"
            )
        return Decision(_NAME, "nccl", "NCCL for tensors on GPUs, gloo for tensors on CPUs")
    if backend.collective == "nccl":
        raise EnvironmentProblem(
            "backend.collective=nccl: NCCL connects GPUs, but this run uses CPUs: set"
            " backend.collective=auto"
        )
    return _between_cpus(backend.collective, launcher, installed)


def _between_cpus(collective: str, launcher: str, installed: Installed) -> Decision:
    if collective == "gloo":
        return Decision(_NAME, "gloo", "set in the config")
    if collective == "mpi" and not installed.mpi:
        raise EnvironmentProblem(
            "backend.collective=mpi: this torch was built without MPI: set backend.collective=auto"
        )
    if collective == "mpi" or (collective == "auto" and installed.mpi):
        return Decision(_NAME, "mpi", "this torch was built with MPI")
    problem = installed.why_no_oneccl()
    if collective == "ccl":
        if problem is not None:
            raise EnvironmentProblem(f"backend.collective=ccl: {problem}")
        return Decision(_NAME, "ccl", "set in the config")
    if problem is not None:
        return Decision(_NAME, "gloo", problem)
    if launcher != INTEL_MPI:
        return Decision(_NAME, "gloo", "without Intel MPI's mpirun oneCCL is slower than gloo")
    return Decision(_NAME, "ccl", "Intel MPI started the ranks, and oneCCL can be loaded")


def _why_no_oneccl() -> str | None:
    from intel_ft.distributed import oneccl

    return oneccl.why_not_usable()
