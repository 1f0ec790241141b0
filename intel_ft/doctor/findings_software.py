"""Findings about packages, programs and the runtime; pure functions of facts, called from
insight.doctor.examine.
"""

from collections.abc import Iterator
from pathlib import Path

from intel_ft.doctor.findings import Finding
from intel_ft.doctor.host import Host
from intel_ft.doctor.runtime import Runtime
from intel_ft.doctor.software import EVERY_RUN, Component
from intel_ft.doctor.step_runner import NOT_TRIED

_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def of_software(components: list[Component]) -> Iterator[Finding]:
    """Packages that every run needs are errors; others that do not fit are warnings, and those
    that can be installed are notes.
    """
    absent: dict[str, list[str]] = {}  # by remedy
    for component in components:
        seen = f"{component.name}: {component.detail} (for {component.needed_for})"
        if component.state == "usable" or not component.remedy:
            continue
        if component.needed_for == EVERY_RUN:
            yield Finding("error", seen, component.remedy)
        elif component.state == "missing":
            absent.setdefault(component.remedy, []).append(seen)
        else:
            yield Finding("warning", seen, component.remedy)
    yield from (Finding("note", "; ".join(seen), remedy) for remedy, seen in absent.items())
    usable = {component.name: component for component in components if component.state == "usable"}
    if "MPI" in usable and usable["MPI"].detail.startswith("Open MPI") and "oneCCL" in usable:
        yield Finding(
            "note",
            "oneCCL under Open MPI goes over TCP, slower than gloo",
            "pip install impi-rt==2021.18.1: Intel MPI's mpirun carries oneCCL",
        )


def of_token(token: bool | None) -> Iterator[Finding]:
    """Whether the Hub would know the user."""
    if token is False:
        yield Finding(
            "note",
            "no token for the Hub: push, and models behind a licence, will not work",
            "hf auth login, or set HF_TOKEN",
        )


def of_runtime(runtime: Runtime, host: Host) -> Iterator[Finding]:
    """OpenMP, pages, and what the environment sets."""
    if runtime.problem is not None and runtime.problem != NOT_TRIED.error:
        yield Finding("error", f"a run fails at its start: {runtime.problem}", "install it anew")
    kinds = {Path(path).name.split(".")[0].split("-")[0] for path in runtime.openmp}
    if len(kinds) > 1:
        yield Finding(
            "warning",
            f"torch runs with {len(kinds)} OpenMP runtimes ({', '.join(sorted(kinds))}), whose "
            "threads fight over the cores",
            "unset LD_PRELOAD, or keep packages that bring another one out of this environment",
        )
    threads = runtime.variables.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) != host.usable:
        yield Finding(
            "note",
            f"OMP_NUM_THREADS={threads}, where {host.usable} cores can be used: runs do not follow "
            "it, libraries may",
            "backend.threads in the config says how many threads a run gets; unset the variable",
        )
    if bound := [name for name in _BINDING if name in runtime.variables]:
        yield Finding(
            "note",
            f"{', '.join(bound)} set: OpenMP binds its threads by itself, alike in every rank",
            "unset where several ranks share a host; each rank binds itself",
        )
    if runtime.transparent == "never":
        yield Finding(
            "note",
            "transparent huge pages are off: each large tensor costs many more page faults",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    if len(host.nodes) > 1:
        yield Finding(
            "note",
            f"{len(host.nodes)} NUMA nodes: a single process reaches far memory half of the time",
            "train with `intel-ft launch CONFIG`, a rank for each node",
        )
