"""The cores, NUMA nodes and limits of this host, as the kernel reports them.

Files are read below a root folder, so that recorded trees of other machines can be read too. Their
format: admin-guide/cputopology.rst of Linux's documentation.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from intel_ft.host import cgroup, slurm
from intel_ft.host.launcher_env import LauncherEnv
from intel_ft.host.procfs import kernel_text

_KIB_PER_GIB = 2**20
SLURM = "Slurm"

_bound_to: set[int] = set()  # the CPUs that this process bound itself to


class Core(NamedTuple):
    """A physical core: its socket, its NUMA node, and its usable hardware threads."""

    socket: int
    node: int
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """What a process may use of its host.

    cores: in the order of their NUMA nodes. memory: GiB by NUMA node, including nodes without cores
    (HBM in flat mode). quota: the CPU time, in cores, that control groups or Slurm allow, and
    quota_by which of them.
    """

    cores: tuple[Core, ...]
    memory: dict[int, float]
    quota: float | None
    quota_by: str = "the control group"

    @property
    def nodes(self) -> tuple[int, ...]:
        """The NUMA nodes that have cores."""
        return tuple(dict.fromkeys(core.node for core in self.cores))

    @property
    def sockets(self) -> int:
        """The number of sockets that have cores."""
        return len({core.socket for core in self.cores})

    @property
    def threads_per_core(self) -> int:
        """Usable hardware threads per core; the maximum over the cores."""
        return max((len(core.threads) for core in self.cores), default=1)

    @property
    def usable(self) -> int:
        """Cores that can compute at the same time: a quota may allow fewer than there are."""
        limit = len(self.cores) if self.quota is None else int(self.quota)
        return max(1, min(len(self.cores), limit))


def read(root: Path = Path("/"), allowed: set[int] | None = None) -> Topology:
    """The host's topology. allowed: CPU numbers to consider, by default those of this process."""
    cpus = root / "sys/devices/system/cpu"
    online = parse_list(kernel_text(cpus / "online")) or os.sched_getaffinity(0)
    allowed = (os.sched_getaffinity(0) if allowed is None else allowed) & online
    memory, node_of = _nodes(root / "sys/devices/system/node")
    threads: dict[tuple[int, int, int], list[int]] = {}
    for cpu in sorted(allowed):
        topology = cpus / f"cpu{cpu}/topology"
        socket = _number(topology / "physical_package_id")
        siblings = parse_list(kernel_text(topology / "thread_siblings_list")) or {cpu}
        threads.setdefault((node_of.get(cpu, 0), max(0, socket), min(siblings)), []).append(cpu)
    cores = tuple(
        Core(socket, node, tuple(cpus)) for (node, socket, _), cpus in sorted(threads.items())
    )
    host = Topology(cores, memory, cgroup.quota(root))
    if allowed == online:  # otherwise a cpuset, of Slurm or of a container, selects the cores
        by_slurm = slurm.cores(len(cores), host.threads_per_core)
        if by_slurm is not None and (host.quota is None or by_slurm < host.quota):
            return replace(host, quota=by_slurm, quota_by=SLURM)
    return host


def is_bound() -> bool:
    """Whether this process has exclusive cores, by `bind_to` or by its launcher.

    A launcher may also bind several ranks to the same cores: those of a socket, a NUMA node or a
    job. So its binding counts only where it is so narrow that as many cores are left for each of
    the other ranks on this host.
    """
    current = os.sched_getaffinity(0)
    if current == _bound_to:
        return True
    all_ranks = reachable_cpus()
    needed = len(read(allowed=current).cores) * LauncherEnv.detect().local_size
    return current < all_ranks and needed <= len(read(allowed=all_ranks).cores)


def bind_to(cpus: tuple[int, ...]) -> None:
    """Bind this process to these CPUs."""
    os.sched_setaffinity(0, cpus)
    _bound_to.clear()
    _bound_to.update(cpus)


def reachable_cpus() -> set[int]:
    """The CPUs that this process could bind itself to, whatever it is bound to now.

    They are the CPUs of its parent process, as far as the cpuset of its control group allows them.
    """
    current = os.sched_getaffinity(0)
    try:
        wider = os.sched_getaffinity(os.getppid())
        if not current < wider:
            return current
        os.sched_setaffinity(0, wider)  # the kernel removes CPUs that are not allowed
    except OSError:  # a hidden parent process, or a sandbox
        return current
    reachable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, current)
    return reachable


def parse_list(text: str) -> set[int]:
    """The numbers of a list such as `0-3,8,10-11`."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _nodes(folder: Path) -> tuple[dict[int, float], dict[int, int]]:
    """GiB by NUMA node, and the NUMA node of each CPU."""
    memory: dict[int, float] = {}
    node_of: dict[int, int] = {}
    for path in sorted(folder.glob("node[0-9]*")):
        node = int(path.name.removeprefix("node"))
        node_of |= dict.fromkeys(parse_list(kernel_text(path / "cpulist")), node)
        for line in kernel_text(path / "meminfo").splitlines():
            if "MemTotal:" in line:
                memory[node] = int(line.split()[-2]) / _KIB_PER_GIB
    return memory, node_of


def _number(path: Path) -> int:
    text = kernel_text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else 0
