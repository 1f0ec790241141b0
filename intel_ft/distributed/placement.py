"""Which cores and memory each rank of a host gets: pure functions of a Topology."""

from typing import NamedTuple

from intel_ft.host.topology import Core, Topology
from intel_ft.plurals import count_of

_SMALLEST_SHARE = 0.75
"""Of an equal share: with fewer cores, one rank is slower than all of them over remote memory."""


_AMX_RANKS, _AMX_CORES = 4, 4
"""Ranks of a NUMA node at most, and cores of each at least, where nothing was measured."""


class Place(NamedTuple):
    """One rank's cores, as CPU numbers (one hardware thread per core).

    nodes: the NUMA nodes whose memory is next to them.
    """

    cpus: tuple[int, ...]
    nodes: tuple[int, ...]


def places(topology: Topology, ranks: int) -> list[Place]:
    """Disjoint places for `ranks` local ranks, as equal as the number of cores allows.

    If the number of ranks is a multiple of the number of NUMA nodes, and the nodes have about as
    many cores each, each rank stays within one node; otherwise the cores are split in node order,
    so that a rank spans as few nodes as possible: ranks get equal shares of the work, so all of
    them wait for the one with the fewest cores. Where a quota allows fewer cores than there are,
    each rank leaves cores unused. Raises ValueError for more ranks than usable cores.
    """
    if ranks > topology.usable:
        raise ValueError(
            f"{count_of(ranks, 'rank')}, but {count_of(topology.usable, 'usable core')}"
        )
    groups = _split(list(topology.cores), ranks)
    if ranks % len(topology.nodes) == 0:
        of_nodes = [
            group
            for node in topology.nodes
            for group in _split(
                [core for core in topology.cores if core.node == node], ranks // len(topology.nodes)
            )
        ]
        if min(map(len, of_nodes)) >= _SMALLEST_SHARE * min(map(len, groups)):
            groups = of_nodes
    most = max(1, topology.usable // ranks)
    if topology.usable < len(topology.cores):
        groups = [group[:most] for group in groups]
    return [
        Place(tuple(core.threads[0] for core in group), topology.memory_nodes(group))
        for group in groups
    ]


def ranks_per_host(topology: Topology, *, amx: bool = False) -> tuple[int, str]:
    """How many ranks to start per host where nothing was measured on it, and why.

    amx: the ranks compute on AMX, where ranks of a few cores were faster than one of many on every
    host that was measured (docs/performance.md).
    """
    nodes, cores = len(topology.nodes), topology.usable
    if nodes > cores:
        return 1, f"{count_of(cores, 'usable core')}"
    most = min(_AMX_RANKS, cores // nodes // _AMX_CORES)
    each = next((n for n in range(most, 0, -1) if cores % (nodes * n) == 0), 1)
    if amx and each > 1:
        share = cores // (nodes * each)
        where = "" if nodes == 1 else f" on each of {nodes} NUMA nodes"
        return (
            nodes * each,
            f"{each} ranks of {count_of(share, 'AMX core')}{where}: faster than one of more",
        )
    if nodes == 1:
        return 1, "one NUMA node"
    return nodes, f"one for each of {nodes} NUMA nodes"


def why_not_bound(topology: Topology) -> str | None:
    """Why ranks must not be bound to cores on this host, or None.

    Under a quota, two containers, or two jobs that Slurm lets share a node, would both take the
    first cores and leave others idle.
    """
    total = len(topology.cores)
    if topology.usable == total:
        return None
    quota = f"{topology.quota_by} allows {topology.quota:g} of {count_of(total, 'core')}"
    return f"{quota}, but does not say which ones"


def _split(cores: list[Core], parts: int) -> list[list[Core]]:
    total = len(cores)
    return [cores[total * i // parts : total * (i + 1) // parts] for i in range(parts)]
