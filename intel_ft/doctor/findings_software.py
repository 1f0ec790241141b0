"""Findings about packages, programs and the runtime environment.

All of them are pure functions of facts.
"""

from collections.abc import Iterator
from pathlib import Path

from intel_ft.doctor.findings import Finding
from intel_ft.doctor.host import Host
from intel_ft.doctor.runtime import Runtime
from intel_ft.doctor.software import EVERY_RUN, Component
from intel_ft.doctor.step_runner import NOT_TRIED
from intel_ft.plurals import count_of

_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def of_software(components: list[Component]) -> Iterator[Finding]:
    """Packages and programs that are missing, do not match, or are broken.

    It is an error if every run needs them, a note if they are optional and missing, else a warning.
    """
    missing: dict[str, list[str]] = {}  # by remedy
    for component in components:
        seen = f"{component.name}: {component.detail} (needed for {component.needed_for})"
        if component.state == "usable" or not component.remedy:
            continue
        if component.needed_for == EVERY_RUN:
            yield Finding("error", seen, component.remedy)
        elif component.state == "missing":
            missing.setdefault(component.remedy, []).append(seen)
        else:
            yield Finding("warning", seen, component.remedy)
    yield from (Finding("note", "; ".join(seen), remedy) for remedy, seen in missing.items())
    usable = {component.name: component for component in components if component.state == "usable"}
    if "MPI" in usable and usable["MPI"].detail.startswith("Open MPI") and "oneCCL" in usable:
        yield Finding(
            "note",
            "oneCCL under Open MPI communicates over TCP, which is slower than gloo",
            "run `pip install impi-rt==2021.18.1`: oneCCL uses Intel MPI for communication",
        )


def of_token(token: bool | None) -> Iterator[Finding]:
    """Whether there is a Hugging Face token."""
    if token is False:
        yield Finding(
            "note",
            "there is no Hugging Face token: `intel-ft push` and gated models will not work",
            "run `hf auth login`, or set HF_TOKEN",
        )


def of_runtime(runtime: Runtime, host: Host) -> Iterator[Finding]:
    """OpenMP, huge pages, NUMA nodes and environment variables."""
    if runtime.problem is not None and runtime.problem != NOT_TRIED.error:
        yield Finding("error", f"runs fail at startup: {runtime.problem}", "reinstall that package")
    kinds = {Path(path).name.split(".")[0].split("-")[0] for path in runtime.openmp}
    if len(kinds) > 1:
        yield Finding(
            "warning",
            f"torch has loaded {len(kinds)} OpenMP runtimes ({', '.join(sorted(kinds))}), whose "
            "threads compete for the cores",
            "unset LD_PRELOAD, or remove packages with another OpenMP runtime from this "
            "environment",
        )
    threads = runtime.variables.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) != host.usable:
        yield Finding(
            "note",
            f"OMP_NUM_THREADS={threads}, but {count_of(host.usable, 'core')} can be used: runs "
            "ignore it, but "
            "some libraries follow it",
            "unset it, and set backend.threads in the config to choose the threads of a run",
        )
    if bound := [name for name in _BINDING if name in runtime.variables]:
        yield Finding(
            "note",
            f"OpenMP binds threads to the same cores in every rank, because of: {', '.join(bound)}",
            "unset it if several ranks share a host: each rank binds itself",
        )
    if runtime.transparent == "never":
        yield Finding(
            "note",
            "transparent huge pages are disabled: large tensors cause many more page faults",
            "run as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    if host.nodes_with_cores > 1:
        yield Finding(
            "note",
            f"this host has {host.nodes_with_cores} NUMA nodes with cores: a single process often "
            "accesses remote memory",
            "train with `intel-ft launch CONFIG`, which starts a rank for each NUMA node",
        )
