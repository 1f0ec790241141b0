"""A job to launch, independent of the launcher."""

import os
from dataclasses import dataclass

# Variables that ranks on other hosts get, in addition to what the launcher forwards by itself.
FORWARDED = (
    *("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "TMPDIR"),
    *("HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*", "TOKENIZERS_*"),
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*"),
    *("CCL_*", "FI_*", "I_MPI_*", "GLOO_*", "TORCH_*", "ONEDNN_*", "DNNL_*", "INTEL_FT_*"),
)


@dataclass(frozen=True)
class Job:
    """A program to run with `ranks_per_host` ranks on each host.

    program: an argument list. hosts: empty for this host. ssh: the program that connects to hosts.
    mpirun: the program that starts ranks (default: the one next to this Python, else on PATH).
    """

    program: tuple[str, ...]
    hosts: tuple[str, ...]
    ranks_per_host: int
    master: str
    ssh: str = "ssh"
    mpirun: str | None = None

    @property
    def ranks(self) -> int:
        """The number of ranks on all hosts."""
        return max(1, len(self.hosts)) * self.ranks_per_host


def forwarded() -> list[str]:
    """The names of this environment's variables that match FORWARDED."""
    exact = {name for name in FORWARDED if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in FORWARDED if name.endswith("*"))
    return sorted(name for name in os.environ if name in exact or name.startswith(prefixes))
