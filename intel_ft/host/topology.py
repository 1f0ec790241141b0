"""The cores, NUMA nodes and limits of this host, as the kernel reports them.

Files are read below a root folder, so that recorded trees of other machines can be read too. Their
format: admin-guide/cputopology.rst and admin-guide/mm/numaperf.rst of Linux's documentation.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

from intel_ft.host import cgroup, slurm
from intel_ft.host.launcher_env import LauncherEnv
from intel_ft.host.procfs import kernel_text

_KIB_PER_GIB = 2**20
SLURM = "Slurm"

_bound_to: set[int] = set()  # the CPUs that this process bound itself to


class Core(NamedTuple):
    """A physical core: its socket, its NUMA node, and its usable hardware threads.

    node: negative for cores that are in no node, one number for each socket. So are cores whose
    node is offline.
    """

    socket: int
    node: int
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """What a process may use of its host.

    cores: in the order of their NUMA nodes. memory: GiB by NUMA node that this process may use,
    including nodes without cores (HBM in flat mode, CXL). quota: the CPU time, in cores, that
    control groups or Slurm allow, and quota_by which of them. nearest: where a core's node has no
    memory, or shares its cores with other nodes, the nodes of the memory next to it.
    """

    cores: tuple[Core, ...]
    memory: dict[int, float]
    quota: float | None
    quota_by: str = "the control group"
    nearest: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def nodes(self) -> tuple[int, ...]:
        """The NUMA nodes that have cores; cores in no node count as one for each socket."""
        return tuple(dict.fromkeys(core.node for core in self.cores))

    def memory_nodes(self, cores: Iterable[Core]) -> tuple[int, ...]:
        """The NUMA nodes whose memory is next to these cores; none where that is unknown."""
        near = {node for core in cores for node in self.nearest.get(core.node, (core.node,))}
        return tuple(sorted(node for node in near if node >= 0))

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
    numa = _Numa.read(root / "sys/devices/system/node", _memory_allowed(root))
    threads: dict[tuple[int, int, int], list[int]] = {}
    for cpu in sorted(allowed):
        socket = max(0, _number(cpus / f"cpu{cpu}/topology/physical_package_id"))
        node = numa.node_of(cpu, socket)
        threads.setdefault((node, socket, _first_thread(cpus, cpu)), []).append(cpu)
    cores = tuple(
        Core(socket, node, tuple(cpus)) for (node, socket, _), cpus in sorted(threads.items())
    )
    nearest = {node: numa.nearest(node) for node in {core.node for core in cores} if node >= 0}
    host = Topology(cores, numa.memory, cgroup.quota(root), nearest=nearest)
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


class _Numa(NamedTuple):
    """NUMA nodes: GiB of memory, CPUs, distances to other nodes, nodes with the fastest access."""

    memory: dict[int, float]
    cpus: dict[int, set[int]]
    distances: dict[int, dict[int, int]]
    initiators: dict[int, set[int]]

    @classmethod
    def read(cls, folder: Path, allowed: set[int] | None) -> Self:
        """The online nodes, in a folder such as /sys/devices/system/node.

        allowed: the nodes whose memory this process may use; None for all.
        """
        numa = cls({}, {}, {}, {})
        paths = {_node_number(path): path for path in folder.glob("node[0-9]*")}
        for node, path in sorted(paths.items()):
            numa.cpus[node] = parse_list(kernel_text(path / "cpulist"))
            row = [int(number) for number in kernel_text(path / "distance").split()]
            numa.distances[node] = dict(zip(sorted(paths), row, strict=False))
            fastest = (path / "access0/initiators").glob("node[0-9]*")
            numa.initiators[node] = {_node_number(other) for other in fastest}
            for line in kernel_text(path / "meminfo").splitlines():
                size = int(line.split()[-2]) if "MemTotal:" in line else 0
                if size and (allowed is None or node in allowed):
                    numa.memory[node] = size / _KIB_PER_GIB
        return numa

    def node_of(self, cpu: int, socket: int) -> int:
        """The first node that lists the CPU: emulated nodes (`numa=fake`) share their CPUs."""
        if not any(self.cpus.values()):
            return 0  # /sys is hidden, or the kernel knows no nodes
        return next((node for node, cpus in self.cpus.items() if cpu in cpus), -1 - socket)

    def nearest(self, node: int) -> tuple[int, ...]:
        """The nodes whose memory is next to the CPUs of a node."""
        cpus, distances = self.cpus.get(node, set()), self.distances.get(node, {})
        candidates = [other for other in self.memory if cpus <= self.cpus[other]]
        if not candidates:  # a node of CPUs alone
            candidates = [other for other in self.memory if node in self.initiators[other]]
        if not candidates and distances:
            candidates = [*self.memory]
        away = {other: distances.get(other, 0) for other in candidates}
        return tuple(other for other in candidates if away[other] == min(away.values()))


def _memory_allowed(root: Path) -> set[int] | None:
    """The nodes that a cpuset leaves to this process (`cpuset.mems`); None if that is not known."""
    for line in kernel_text(root / "proc/self/status").splitlines():
        if line.startswith("Mems_allowed_list:"):
            return parse_list(line.partition(":")[2])
    return None


def _node_number(path: Path) -> int:
    return int(path.name.removeprefix("node"))


def _first_thread(cpus: Path, cpu: int) -> int:
    """The first hardware thread of the CPU's core.

    Two cores of an AMD module share an FPU, and the kernel calls them siblings; as cores they have
    numbers of their own.
    """
    siblings = parse_list(kernel_text(cpus / f"cpu{cpu}/topology/thread_siblings_list")) or {cpu}
    core = _number(cpus / f"cpu{cpu}/topology/core_id")
    return min(
        other for other in siblings if _number(cpus / f"cpu{other}/topology/core_id") == core
    )


def _number(path: Path) -> int:
    text = kernel_text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else 0
