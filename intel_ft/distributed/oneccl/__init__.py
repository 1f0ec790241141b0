"""oneCCL for current PyTorch: importing this registers the torch.distributed backend `ccl`.

    import intel_ft.distributed.oneccl
    torch.distributed.init_process_group("ccl")

It needs Intel's oneCCL (`pip install oneccl==2022.1.2`, or an oneAPI installation), but no
compiler and nothing else of intel_ft. It is fast under Intel MPI's mpirun, whose ranks it passes to
torch; it also works without MPI, under torchrun.
"""

import os

import torch.distributed

from intel_ft.distributed.oneccl.library import under_intel_mpi, why_not_usable
from intel_ft.distributed.oneccl.process_group import new_group

__all__ = ["new_group", "why_not_usable"]


def _set_rendezvous_from_mpi() -> None:
    """Set the variables of `env://` from those of Intel MPI's mpirun, unless they are set."""
    environment = os.environ
    values = {
        "RANK": environment["PMI_RANK"],
        "WORLD_SIZE": environment["PMI_SIZE"],
        "LOCAL_RANK": environment.get("MPI_LOCALRANKID"),
        "LOCAL_WORLD_SIZE": environment.get("MPI_LOCALNRANKS"),
    }
    if values["LOCAL_WORLD_SIZE"] == values["WORLD_SIZE"]:  # else the launcher sets MASTER_ADDR
        # Ranks on one host have the same parent process; two jobs on one host do not.
        port = str(20000 + os.getppid() % 20000)
        values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in values.items():
        if value is not None:
            environment.setdefault(name, value)


torch.distributed.Backend.register_backend("ccl", new_group, devices=["cpu"])
if under_intel_mpi():
    _set_rendezvous_from_mpi()
