"""The cores, NUMA nodes and limits of this host as the kernel tells them; called from
distributed.layout, distributed.launch and insight.

Everything is read below a root folder, so that a recorded tree of another machine can be read too.
The files: admin-guide/cputopology.rst of Linux's documentation.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from intel_ft.host import cgroup, slurm
from intel_ft.host.launcher_env import LauncherEnv
from intel_ft.host.procfs import kernel_text

_KIB = 2**20  # in a GiB
SLURM = "Slurm"

_taken: set[int] = set()  # the CPUs that this process bound itself to


class Core(NamedTuple):
    """A physical core: its socket, its NUMA node, and those of its hardware threads that may be
    used.
    """

    socket: int
    node: int
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """What a process may use of its host.

    `cores` are in the order of their nodes; `memory` is GiB by NUMA node, those without cores (HBM
    in flat mode) included; `quota` is the time, in cores, that control groups or Slurm allow, and
    `quota_by` who does.
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
        """How many sockets have cores."""
        return len({core.socket for core in self.cores})

    @property
    def threads_per_core(self) -> int:
        """Hardware threads of a core that may be used, the most that any has."""
        return max((len(core.threads) for core in self.cores), default=1)

    @property
    def usable(self) -> int:
        """Cores that can compute at the same time: a quota may allow less than there are."""
        limit = len(self.cores) if self.quota is None else int(self.quota)
        return max(1, min(len(self.cores), limit))


def read(root: Path = Path("/"), allowed: set[int] | None = None) -> Topology:
    """The host's topology; `allowed` are the CPU numbers to look at, by default this process's."""
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
    found = Topology(cores, memory, cgroup.quota(root))
    if allowed == online:  # else Slurm or somebody else has said which ones
        by_slurm = slurm.cores(len(cores), found.threads_per_core)
        if by_slurm is not None and (found.quota is None or by_slurm < found.quota):
            return replace(found, quota=by_slurm, quota_by=SLURM)
    return found


def bound() -> bool:
    """Whether this process is bound to cores of its own: by `take`, or by a launcher to fewer CPUs
    than there are for the ranks of this host, so few that as many for each of them fit. Launchers
    also bind several ranks to the same cores: those of a socket, a NUMA node or a job.
    """
    own = os.sched_getaffinity(0)
    if own == _taken:
        return True
    all_ranks = within_reach()
    needed = len(read(allowed=own).cores) * LauncherEnv.detect().local_size
    return own < all_ranks and needed <= len(read(allowed=all_ranks).cores)


def take(cpus: tuple[int, ...]) -> None:
    """Bind this process to these CPUs."""
    os.sched_setaffinity(0, cpus)
    _taken.clear()
    _taken.update(cpus)


def within_reach() -> set[int]:
    """The CPUs that this process may bind itself to, whatever it is bound to now: those of the
    process that started it, of which a cpuset of a control group may allow some.
    """
    own = os.sched_getaffinity(0)
    try:
        wider = os.sched_getaffinity(os.getppid())
        if not own < wider:
            return own
        os.sched_setaffinity(0, wider)  # the kernel takes away what is not allowed
    except OSError:  # a parent that is hidden, or a sandbox
        return own
    found = os.sched_getaffinity(0)
    os.sched_setaffinity(0, own)
    return found


def parse_list(text: str) -> set[int]:
    """The numbers of a list such as `0-3,8,10-11`."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _nodes(folder: Path) -> tuple[dict[int, float], dict[int, int]]:
    """GiB by node, and the node of each CPU."""
    memory: dict[int, float] = {}
    node_of: dict[int, int] = {}
    for path in sorted(folder.glob("node[0-9]*")):
        node = int(path.name.removeprefix("node"))
        node_of |= dict.fromkeys(parse_list(kernel_text(path / "cpulist")), node)
        for line in kernel_text(path / "meminfo").splitlines():
            if "MemTotal:" in line:
                memory[node] = int(line.split()[-2]) / _KIB
    return memory, node_of


def _number(path: Path) -> int:
    text = kernel_text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else 0
