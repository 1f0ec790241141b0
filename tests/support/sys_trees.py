"""Trees of /sys and /proc of other machines, in the layout of Linux."""

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
        folder = root / f"sys/devices/system/node/node{node}"
        write(folder / "cpulist", listed)
        write(
            folder / "meminfo", f"Node {node} MemTotal:  {gib * GIB} kB\nNode {node} MemFree: 1 kB"
        )
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
