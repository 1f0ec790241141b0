"""Binding a rank to its cores and memory, before torch loads and starts threads; called from
cli.train. Imports nothing heavy.
"""

import contextlib
import ctypes
import os

from intel_ft.decisions import Decision
from intel_ft.distributed.placement import Place, places, why_not_bound
from intel_ft.host import topology
from intel_ft.host.launcher_env import INTEL_MPI, LauncherEnv

_SET_MEMPOLICY = 238  # the system call's number on x86-64
_PREFERRED_MANY = 5  # linux/mempolicy.h: these nodes first, others rather than fail; Linux 5.15
_WORKERS = "CCL_WORKER_AFFINITY"


def bind(started: LauncherEnv, wanted: str, collective: str = "auto") -> list[Decision]:
    """Bind this process where several ranks share its host and nobody has given it cores of its
    own: to its share of the cores and to their NUMA nodes' memory. `wanted` is backend.bind.
    oneCCL's workers, where the user asks for such threads, get cores that it leaves to them.
    """
    name = "backend.bind"
    workers = _workers(started, collective)
    if started.local_size == 1 and not workers:
        return []
    if wanted == "none":
        return [Decision(name, "none", "set in the config")]
    if topology.bound():
        cpus = sorted(os.sched_getaffinity(0))
        return [Decision(name, as_list(cpus), "the launcher bound this rank to these cores")]
    found = topology.read(allowed=topology.within_reach())
    try:
        shares = places(found, started.local_size)
    except ValueError as error:
        return [Decision(name, "none", str(error))]
    if why := why_not_bound(found):
        return [Decision(name, "none", why)]
    place = shares[started.local_rank]
    left = [_left_to(workers, shares)] if workers else []
    own = _without(left[0].value, place.cpus) if left else place.cpus
    topology.take(own)
    memory = _prefer_memory(place) if len(found.memory) > 1 else ""
    why = f"rank {started.local_rank} of {started.local_size} on this host{memory}"
    return [Decision(name, as_list(own), why), *left]


def as_list(numbers: tuple[int, ...] | list[int]) -> str:
    """Such as `0-3,8`; numbers in order."""
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and number == stretches[-1][1] + 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in stretches)


def _workers(started: LauncherEnv, collective: str) -> int:
    """How many threads of oneCCL the user asks for in each rank, if it may be what ranks use: it
    polls in them, and each would take its time from this rank's or another's.
    """
    by_default = collective == "auto" and started.launcher == INTEL_MPI
    asked = os.environ.get("CCL_WORKER_OFFLOAD", "0") not in {"", "0"}
    if started.size == 1 or not asked or not (by_default or collective == "ccl"):
        return 0
    count = os.environ.get("CCL_WORKER_COUNT", "")
    return int(count) if count.isdigit() else 1


def _left_to(workers: int, shares: list[Place]) -> Decision:
    """The cores of all ranks' workers, rank after rank, as oneCCL reads them (its developer guide:
    Execution of Communication Operations); by itself it takes the host's last ones in every rank.
    """
    if chosen := os.environ.get(_WORKERS):
        return Decision(_WORKERS, chosen, "set in the environment")
    if (fewest := min(len(place.cpus) for place in shares)) <= workers:
        why = f"not set: ranks of {fewest} cores cannot leave {workers} to oneCCL's workers"
        return Decision(_WORKERS, "", why)
    last = [str(cpu) for place in shares for cpu in place.cpus[-workers:]]
    os.environ[_WORKERS] = ",".join(last)
    return Decision(_WORKERS, ",".join(last), "the last of each rank's cores, for oneCCL's workers")


def _without(named: str, cpus: tuple[int, ...]) -> tuple[int, ...]:
    """The CPUs that are not `named`, for workers: all, where none would stay or it says `auto`."""
    with contextlib.suppress(ValueError):
        return tuple(sorted(set(cpus) - topology.parse_list(named))) or cpus
    return cpus


def _prefer_memory(place: Place) -> str:
    mask = ctypes.c_ulong(sum(1 << node for node in place.nodes))
    libc = ctypes.CDLL(None, use_errno=True)
    bits = ctypes.sizeof(mask) * 8
    nodes = as_list(place.nodes)
    if libc.syscall(_SET_MEMPOLICY, _PREFERRED_MANY, ctypes.byref(mask), bits + 1) == 0:
        return f", memory of NUMA node {nodes}"
    return f", memory not bound ({os.strerror(ctypes.get_errno())})"
