"""Trees of /sys and /proc of other machines, in the layout of Linux."""

import shutil
from collections.abc import Sequence
from pathlib import Path

GIB = 2**20  # in KiB, the unit of meminfo


def write_machine(
    root: Path,
    nodes: Sequence[tuple[str, int]],
    nodes_a_socket: int,
    siblings: int = 0,
    quota: str | None = None,
) -> Path:
    """`nodes` are (CPU list, GiB). With `siblings` n, CPU i and i + n are threads of one core."""
    cpus: dict[int, int] = {}
    for node, (listed, gib) in enumerate(nodes):
        write_node(root, node, listed, gib)
        for part in filter(None, listed.split(",")):
            first, _, last = part.partition("-")
            cpus |= dict.fromkeys(range(int(first), int(last or first) + 1), node)
    system = root / "sys/devices/system/cpu"
    write(system / "online", f"0-{max(cpus)}")
    for cpu, node in cpus.items():
        first = cpu % siblings if siblings else cpu
        topology = system / f"cpu{cpu}/topology"
        write(topology / "physical_package_id", str(node // nodes_a_socket))
        write(
            topology / "thread_siblings_list",
            f"{first},{first + siblings}" if siblings else f"{cpu}",
        )
    write(root / "proc/self/cgroup", "0::/jobs/step")
    if quota is not None:
        write(root / "sys/fs/cgroup/jobs/cpu.max", quota)
        write(root / "sys/fs/cgroup/jobs/step/cpu.max", "max 100000")
    return root


def write_node(
    root: Path,
    node: int,
    cpus: str = "",
    gib: int = 0,
    distances: str = "",
    initiators: Sequence[int] = (),
) -> None:
    """One NUMA node; `distances` to all nodes in order, `initiators` with the fastest access."""
    folder = root / f"sys/devices/system/node/node{node}"
    write(folder / "cpulist", cpus)
    write(folder / "meminfo", f"Node {node} MemTotal:  {gib * GIB} kB\nNode {node} MemFree: 1 kB")
    if distances:
        write(folder / "distance", distances)
    for other in initiators:
        (folder / f"access0/initiators/node{other}").mkdir(parents=True)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def two_sockets_of_four_nodes(root: Path, **more: str) -> Path:
    """Two Xeons of 56 cores in SNC4 mode with hyper-threading: CPUs i and i + 112 share a core."""
    lists = [f"{n * 14}-{n * 14 + 13},{112 + n * 14}-{112 + n * 14 + 13}" for n in range(8)]
    return write_machine(root, [(cpus, 64) for cpus in lists], 4, siblings=112, **more)


def snc4_with_hbm(root: Path) -> Path:
    """One Xeon Max of 48 cores in SNC4 and flat mode: nodes 4 to 7 are HBM, without cores."""
    return write_machine(
        root, [(f"{n * 12}-{n * 12 + 11}", 32) for n in range(4)] + [("", 16)] * 4, 4
    )


def two_modules_of_amd(root: Path) -> Path:
    """An Opteron's module has two cores and one FPU; the kernel lists both cores as siblings."""
    write_machine(root, [("0-3", 16)], 1)
    for cpu in range(4):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        write(topology / "thread_siblings_list", "0-1" if cpu < 2 else "2-3")
        write(topology / "core_id", str(cpu))
    return root


def memory_apart_from_cores(root: Path) -> Path:
    """As in hwloc's fakememinitiators: CPUs in nodes 0 and 1, memory in nodes 2 to 5.

    Nodes 2 and 3 are DRAM, 4 and 5 are slower: their initiators are the same, their distance is
    greater.
    """
    write_machine(root, [("0-1", 0), ("2-3", 0)], 1)
    write_node(root, 0, "0-1", 0, "10 20 11 21 17 28")
    write_node(root, 1, "2-3", 0, "20 10 21 11 28 17")
    for node, gib in ((2, 92), (3, 92), (4, 740), (5, 740)):
        write_node(root, node, "", gib, initiators=[node % 2])
    return root


def first_node_offline(root: Path) -> Path:
    """As in hwloc's offline-cpu0-node0: CPU 0 and all memory of the first socket are offline."""
    write_machine(root, [("0,2,4", 32), ("1,3,5", 64)], 1)
    shutil.rmtree(root / "sys/devices/system/node/node0")
    write(root / "sys/devices/system/cpu/online", "1-5")
    return root
