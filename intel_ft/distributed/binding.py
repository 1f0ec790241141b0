"""Binding a rank to its cores and memory, before torch loads and starts threads.

Imports nothing heavy.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from intel_ft.decisions import Decision
from intel_ft.distributed.placement import Place, places, why_not_bound
from intel_ft.host import topology
from intel_ft.host.launcher_env import INTEL_MPI, LauncherEnv

_SET_MEMPOLICY = 238  # the system call's number on x86-64
_GET_MEMPOLICY = 239
_INTERLEAVE = 3  # linux/mempolicy.h
_MOST_NODES = 1024  # of any kernel's configuration
_PREFERRED_MANY = 5  # linux/mempolicy.h: these nodes first, then others; since Linux 5.15
_WORKER_AFFINITY = "CCL_WORKER_AFFINITY"


def bind(env: LauncherEnv, setting: str, collective: str = "auto") -> list[Decision]:
    """Bind this process to its share of the host's cores and to the memory of their NUMA nodes.

    Only where several ranks share the host and the launcher has not given this one exclusive cores.
    setting: backend.bind. Where the user turned on oneCCL's worker threads, each rank leaves cores
    to them.
    """
    name = "backend.bind"
    workers = _ccl_workers(env, collective)
    if env.local_size == 1 and not workers:
        return []
    if setting == "none":
        return [Decision(name, "none", "set in the config")]
    if topology.is_bound():
        current = sorted(os.sched_getaffinity(0))
        return [Decision(name, format_list(current), "the launcher bound this rank to these cores")]
    host = topology.read(allowed=topology.reachable_cpus())
    try:
        shares = places(host, env.local_size)
    except ValueError as error:
        return [Decision(name, "none", str(error))]
    if why := why_not_bound(host):
        return [Decision(name, "none", why)]
    place = shares[env.local_rank]
    for_workers = [_worker_cores(workers, shares)] if workers else []
    cpus = _without(for_workers[0].value, place.cpus) if for_workers else place.cpus
    topology.bind_to(cpus)
    memory = _prefer_memory(place) if len(host.memory) > 1 else ""
    why = f"rank {env.local_rank} of {env.local_size} on this host{memory}"
    return [Decision(name, format_list(cpus), why), *for_workers]


def format_list(numbers: tuple[int, ...] | list[int]) -> str:
    """Sorted numbers in the kernel's list format, such as `0-3,8`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in ranges)


def _ccl_workers(env: LauncherEnv, collective: str) -> int:
    """The number of oneCCL worker threads per rank; 0 if off, or if ranks do not use oneCCL.

    Worker threads poll, so on shared cores they would slow down this rank or another one.
    """
    by_default = collective == "auto" and env.launcher == INTEL_MPI
    offload = os.environ.get("CCL_WORKER_OFFLOAD", "0") not in {"", "0"}
    if env.size == 1 or not offload or not (by_default or collective == "ccl"):
        return 0
    count = os.environ.get("CCL_WORKER_COUNT", "")
    return int(count) if count.isdigit() else 1


def _worker_cores(workers: int, shares: list[Place]) -> Decision:
    """Set the cores of all ranks' worker threads, rank after rank.

    The format is in oneCCL's developer guide, Execution of Communication Operations. By default
    every rank's workers take the last cores of the host.
    """
    if chosen := os.environ.get(_WORKER_AFFINITY):
        return Decision(_WORKER_AFFINITY, chosen, "set in the environment")
    if (fewest := min(len(place.cpus) for place in shares)) <= workers:
        why = f"not set: ranks with {fewest} cores cannot spare {workers} for oneCCL's workers"
        return Decision(_WORKER_AFFINITY, "", why)
    last = ",".join(str(cpu) for place in shares for cpu in place.cpus[-workers:])
    os.environ[_WORKER_AFFINITY] = last
    return Decision(_WORKER_AFFINITY, last, "the last of each rank's cores, for oneCCL's workers")


def _without(reserved: str, cpus: tuple[int, ...]) -> tuple[int, ...]:
    """The CPUs that are not in the list `reserved`; all, if none would be left or it is `auto`."""
    with contextlib.suppress(ValueError):
        return tuple(sorted(set(cpus) - topology.parse_list(reserved))) or cpus
    return cpus


def _prefer_memory(place: Place) -> str:
    if not place.nodes:
        return ", memory not bound (none is next to these cores)"
    libc = ctypes.CDLL(None, use_errno=True)
    mask, bits = _node_mask(place.nodes)
    if libc.syscall(_SET_MEMPOLICY, _PREFERRED_MANY, mask, bits + 1) == 0:
        return f", memory of NUMA node {format_list(place.nodes)}"
    return f", memory not bound ({os.strerror(ctypes.get_errno())})"


@contextmanager
def interleaved(nodes: tuple[int, ...]) -> Iterator[None]:
    """Spread the pages that this thread first touches in the block over the memory of `nodes`.

    Where the kernel does not allow it, pages come from where they would have.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    mask, bits = _node_mask(nodes)
    before, mode = _node_mask((_MOST_NODES - 1,))[0], ctypes.c_int()
    known = libc.syscall(_GET_MEMPOLICY, ctypes.byref(mode), before, _MOST_NODES + 1, None, 0) == 0
    changed = known and libc.syscall(_SET_MEMPOLICY, _INTERLEAVE, mask, bits + 1) == 0
    try:
        yield
    finally:
        if changed:
            libc.syscall(_SET_MEMPOLICY, mode.value, before, _MOST_NODES + 1)


def _node_mask(nodes: tuple[int, ...]) -> tuple["ctypes.Array[ctypes.c_ulong]", int]:
    """The nodes as set_mempolicy(2) takes them, as bits of unsigned longs, and how many bits."""
    width = 8 * ctypes.sizeof(ctypes.c_ulong)
    words = [0] * (max(nodes) // width + 1)
    for node in nodes:
        words[node // width] |= 1 << node % width
    return (ctypes.c_ulong * len(words))(*words), width * len(words)
