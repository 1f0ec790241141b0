"""Which cores and memory each rank of a host gets; called from distributed.binding and
distributed.launch. Pure: it reads a Topology and changes nothing.
"""

from typing import NamedTuple

from intel_ft.host.topology import Core, Topology


class Place(NamedTuple):
    """One rank's cores, as CPU numbers (one hardware thread a core), and their NUMA nodes."""

    cpus: tuple[int, ...]
    nodes: tuple[int, ...]


def places(topology: Topology, ranks: int) -> list[Place]:
    """A place for each of `ranks` local ranks, disjoint, as equal as the cores allow.

    Ranks that are a multiple of the NUMA nodes stay inside of one each; otherwise the cores are cut
    in node order, so that a rank spans as few nodes as possible. Where a quota allows less than
    there are cores, each rank leaves cores unused. Raises ValueError for more ranks than cores.
    """
    if ranks > topology.usable:
        raise ValueError(f"{ranks} ranks, but {topology.usable} usable cores")
    nodes = topology.nodes
    if ranks % len(nodes) == 0:
        groups = [
            group
            for node in nodes
            for group in _cut([c for c in topology.cores if c.node == node], ranks // len(nodes))
        ]
    else:
        groups = _cut(list(topology.cores), ranks)
    if not all(groups):  # nodes with fewer cores than ranks
        groups = _cut(list(topology.cores), ranks)
    most = max(1, topology.usable // ranks)
    if topology.usable < len(topology.cores):
        groups = [group[:most] for group in groups]
    return [
        Place(tuple(core.threads[0] for core in group), tuple(sorted({c.node for c in group})))
        for group in groups
    ]


def ranks_per_host(topology: Topology) -> tuple[int, str]:
    """How many ranks to start where nothing was measured, and why."""
    nodes = len(topology.nodes)
    if nodes > topology.usable:
        return 1, f"{topology.usable} usable cores"
    if nodes == 1:
        return 1, "one NUMA node"
    return nodes, f"one for each of {nodes} NUMA nodes"


def why_not_bound(topology: Topology) -> str | None:
    """Why no rank may be bound to its place here, or None: two containers, or two jobs that Slurm
    lets share a node, would both take the first cores, and leave others idle.
    """
    there = len(topology.cores)
    if topology.usable == there:
        return None
    return f"{topology.quota_by} allows {topology.quota:g} of {there} cores, and not certain ones"


def _cut(cores: list[Core], parts: int) -> list[list[Core]]:
    total = len(cores)
    return [cores[total * i // parts : total * (i + 1) // parts] for i in range(parts)]
