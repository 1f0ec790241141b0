"""What is to be started, before any launcher's flags; called from distributed.launch."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from intel_ft.errors import UserError

_LINE = re.compile(
    r"(?P<name>\w[\w.-]*)(?::(?P<colon>[1-9]\d*))?(?:\s+slots=(?P<slots>[1-9]\d*))?(?:\s+\w+=\S+)*"
)

# What ranks on other hosts get of this environment, besides what the launcher sends by itself.
FORWARDED = (
    *("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "TMPDIR"),
    *("HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*", "TOKENIZERS_*"),
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*"),
    *("CCL_*", "FI_*", "I_MPI_*", "GLOO_*", "TORCH_*", "ONEDNN_*", "DNNL_*", "INTEL_FT_*"),
)


@dataclass(frozen=True)
class Job:
    """`program` is an argument list, run by `ranks_per_host` ranks on each host; no hosts means
    this one. `ssh` is the program that reaches them, `mpirun` the one that starts ranks (default:
    the one beside this Python, else on PATH).
    """

    program: tuple[str, ...]
    hosts: tuple[str, ...]
    ranks_per_host: int
    master: str
    ssh: str = "ssh"
    mpirun: str | None = None

    @property
    def ranks(self) -> int:
        """Of all hosts."""
        return max(1, len(self.hosts)) * self.ranks_per_host


def read_hostfile(path: Path) -> tuple[tuple[str, ...], int | None]:
    """The hosts of a file, one a line as `name`, `name:2` or `name slots=2`, and how many ranks
    each gets where the file says so; a host on two lines gets two (as in PBS_NODEFILE). Raises
    UserError.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the host file cannot be read ({error})") from None
    slots: dict[str, int] = {}
    said = False
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise UserError(f"{path}, line {number}: {text[:60]!r} is not a host name")
        given = match["colon"] or match["slots"]
        said = said or given is not None or match["name"] in slots
        slots[match["name"]] = slots.get(match["name"], 0) + int(given or 1)
    if not slots:
        raise UserError(f"{path}: no host in it")
    if len(set(slots.values())) > 1:
        uneven = ", ".join(f"{host} {count}" for host, count in slots.items())
        raise UserError(f"{path}: give every host the same number of ranks ({uneven[:200]})")
    return tuple(slots), next(iter(slots.values())) if said else None


def forwarded() -> list[str]:
    """The names in this environment that match FORWARDED."""
    exact = {name for name in FORWARDED if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in FORWARDED if name.endswith("*"))
    return sorted(name for name in os.environ if name in exact or name.startswith(prefixes))
