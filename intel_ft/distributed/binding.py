"""Binding a rank to its cores and memory, before torch loads and starts threads; called from
cli.train. Imports nothing heavy.
"""

import ctypes
import os

from intel_ft.decisions import Decision
from intel_ft.distributed import topology
from intel_ft.distributed.layout import Place, places
from intel_ft.distributed.started import Started

_SET_MEMPOLICY = 238  # the system call's number on x86-64
_PREFERRED_MANY = 5  # linux/mempolicy.h: these nodes first, others rather than fail; Linux 5.15


def bind(started: Started, wanted: str) -> list[Decision]:
    """Bind this process where several ranks share its host and nobody has given it cores of its
    own: to its share of the cores and to their NUMA nodes' memory. `wanted` is backend.bind.
    """
    name = "backend.bind"
    if started.local_size == 1:
        return []
    if wanted == "none":
        return [Decision(name, "none", "set in the config")]
    if topology.bound():
        cpus = sorted(os.sched_getaffinity(0))
        return [Decision(name, as_list(cpus), "the launcher bound this rank to these cores")]
    found = topology.read(allowed=topology.within_reach())
    try:
        place = places(found, started.local_size)[started.local_rank]
    except ValueError as error:
        return [Decision(name, "none", str(error))]
    topology.take(place.cpus)
    memory = _prefer_memory(place) if len(found.memory) > 1 else ""
    why = f"rank {started.local_rank} of {started.local_size} on this host{memory}"
    return [Decision(name, as_list(place.cpus), why)]


def as_list(numbers: tuple[int, ...] | list[int]) -> str:
    """Such as `0-3,8`; numbers in order."""
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and number == stretches[-1][1] + 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in stretches)


def _prefer_memory(place: Place) -> str:
    mask = ctypes.c_ulong(sum(1 << node for node in place.nodes))
    libc = ctypes.CDLL(None, use_errno=True)
    bits = ctypes.sizeof(mask) * 8
    nodes = as_list(place.nodes)
    if libc.syscall(_SET_MEMPOLICY, _PREFERRED_MANY, ctypes.byref(mask), bits + 1) == 0:
        return f", memory of NUMA node {nodes}"
    return f", memory not bound ({os.strerror(ctypes.get_errno())})"
