"""oneCCL for today's PyTorch: importing this registers the torch.distributed backend `ccl`.

    import intel_ft.distributed.oneccl
    torch.distributed.init_process_group("ccl")

It needs Intel's oneCCL (`pip install oneccl==2022.1.2`, or an oneAPI installation) and neither a
compiler nor the rest of this package. Fast under Intel MPI's mpirun, whose ranks it gives to torch;
also works without MPI, under torchrun.
"""

import os

import torch.distributed

from intel_ft.distributed.oneccl.library import under_intel_mpi, why_not_usable
from intel_ft.distributed.oneccl.process_group import new_group

__all__ = ["new_group", "why_not_usable"]


def _tell_torch_of_mpi() -> None:
    """Set what `env://` reads from what Intel MPI's mpirun set; what is set stays."""
    environment = os.environ
    values = {
        "RANK": environment["PMI_RANK"],
        "WORLD_SIZE": environment["PMI_SIZE"],
        "LOCAL_RANK": environment.get("MPI_LOCALRANKID"),
        "LOCAL_WORLD_SIZE": environment.get("MPI_LOCALNRANKS"),
    }
    if values["LOCAL_WORLD_SIZE"] == values["WORLD_SIZE"]:  # on one host; else the launcher knows
        # Ranks of one host have the same parent, and two jobs of one host have not.
        port = str(20000 + os.getppid() % 20000)
        values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in values.items():
        if value is not None:
            environment.setdefault(name, value)


torch.distributed.Backend.register_backend("ccl", new_group, devices=["cpu"])
if under_intel_mpi():
    _tell_torch_of_mpi()
