"""Facts of the runtime as a run would have it: OpenMP, allocator, huge pages, threads, binding."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from intel_ft.decisions import Decision
from intel_ft.distributed.binding import format_list
from intel_ft.distributed.launch.tune_ranks import chosen_ranks
from intel_ft.distributed.placement import places, why_not_bound
from intel_ft.doctor.step_runner import Outcome
from intel_ft.host import openmp, topology
from intel_ft.host.procfs import kernel_text

_PREFIXES = ("OMP_", "KMP_", "GOMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "MALLOC_", "CCL_")
_MORE = ("LD_PRELOAD", "I_MPI_PIN", "I_MPI_PIN_DOMAIN")


@dataclass(frozen=True)
class Runtime:
    """What a run would decide and find here.

    `problem`: why a run cannot start here. `openmp`: paths of the OpenMP runtimes that torch
    loaded. `transparent`: transparent huge pages (always, madvise or never); `reserved`: GiB of
    reserved huge pages. `variables`: relevant environment variables of the user.
    """

    problem: str | None
    openmp: tuple[str, ...]
    decisions: tuple[Decision, ...]
    transparent: str | None
    reserved: float
    variables: dict[str, str]


def read(outcomes: dict[str, Outcome]) -> Runtime:
    """The facts, from the outcomes of the steps `backend` and `openmp`."""
    decisions = [Decision(*values) for values in outcomes["backend"].value or []]
    return Runtime(
        problem=outcomes["backend"].error,
        openmp=tuple(outcomes["openmp"].value or ()),
        decisions=(*decisions, openmp.wait_policy(), *_placement()),
        transparent=transparent_pages(),
        reserved=_reserved_gib(),
        variables={
            name: value
            for name, value in sorted(os.environ.items())
            if (name.startswith(_PREFIXES) or name in _MORE) and not _set_by_us(name, value)
        },
    )


def transparent_pages(root: Path = Path("/")) -> str | None:
    """The selected value of `always [madvise] never`."""
    text = kernel_text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else None


def _placement() -> list[Decision]:
    """The ranks that `launch` would start on this host, and the cores that each would get."""
    host = topology.read()
    ranks, why = chosen_ranks(host, None)
    if ranks == 1:
        cores, how = "all cores of this process", "one rank"
    elif unbound := why_not_bound(host):
        cores, how = "none", unbound
    else:
        shares = [format_list(place.cpus) for place in places(host, ranks)]
        cores, how = " | ".join(shares), "each rank binds itself"
    return [Decision("ranks per host", str(ranks), why), Decision("backend.bind", cores, how)]


def _reserved_gib() -> float:
    total = 0
    for folder in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB"):
        count = kernel_text(folder / "nr_hugepages").strip()
        size = folder.name.removeprefix("hugepages-").removesuffix("kB")
        total += int(count or 0) * int(size) * 1024
    return total / 2**30


def _set_by_us(name: str, value: str) -> bool:
    """Whether `intel-ft` itself set this variable at startup."""
    policy = openmp.wait_policy()
    return name == openmp.VARIABLE and value == policy.value and "environment" not in policy.reason
