"""A job to launch, independent of the launcher."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from intel_ft.errors import UserError

_LINE = re.compile(
    r"(?P<name>\w[\w.-]*)(?::(?P<colon>[1-9]\d*))?(?:\s+slots=(?P<slots>[1-9]\d*))?(?:\s+\w+=\S+)*"
)

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


def read_hostfile(path: Path) -> tuple[tuple[str, ...], int | None]:
    """The hosts of a file, and the ranks per host if the file has them.

    Lines are `name`, `name:2` or `name slots=2`; a host on two lines gets two ranks (as in
    PBS_NODEFILE). Raises UserError.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the host file cannot be read ({error})") from None
    slots: dict[str, int] = {}
    counted = False
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise UserError(
                f"{path}, line {number}: {text[:60]!r} is not a host name: write `name`, `name:2` "
                "or `name slots=2`"
            )
        given = match["colon"] or match["slots"]
        counted = counted or given is not None or match["name"] in slots
        slots[match["name"]] = slots.get(match["name"], 0) + int(given or 1)
    if not slots:
        raise UserError(f"{path}: the host file names no host")
    if len(set(slots.values())) > 1:
        uneven = ", ".join(f"{host} {count}" for host, count in slots.items())
        raise UserError(f"{path}: give every host the same number of ranks ({uneven[:200]})")
    return tuple(slots), next(iter(slots.values())) if counted else None


def forwarded() -> list[str]:
    """The names of this environment's variables that match FORWARDED."""
    exact = {name for name in FORWARDED if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in FORWARDED if name.endswith("*"))
    return sorted(name for name in os.environ if name in exact or name.startswith(prefixes))
