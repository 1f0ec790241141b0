"""Facts of the machine: processor, memory, limits, clock and disks."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from intel_ft.host import cgroup, cpu, topology
from intel_ft.host.procfs import kernel_text

_GIB = 2**30


@dataclass(frozen=True)
class Clock:
    """CPU frequencies in GHz, and how often cores were throttled.

    `highest` is that of the CPU, `allowed` the highest that the kernel permits. Values that the
    kernel does not report (as in most virtual machines) are None.
    """

    now: float | None
    base: float | None
    highest: float | None
    allowed: float | None
    governor: str | None
    driver: str | None
    throttled: int | None


@dataclass(frozen=True)
class Host:
    """The machine, and what this process may use of it.

    Memory and disk are in GiB; `nodes` is the memory of each NUMA node, including those without
    cores. `quota` is in cores and `quota_by` says who set it. `disk` is the free space of the
    working folder and of the Hugging Face cache; None if this user has no access.
    """

    cpu: str
    vendor: str
    family: int
    virtual: bool
    sockets: int
    nodes: tuple[float, ...]
    nodes_with_cores: int
    cores: int
    threads_per_core: int
    machine_cores: int
    quota: float | None
    quota_by: str
    usable: int
    memory: float
    memory_limit: float | None
    available: float
    load: float
    clock: Clock
    disk: dict[str, float | None]
    shared_memory: float | None

    @property
    def busy(self) -> bool:
        """Whether other programs use the machine, so that measured rates may be too low."""
        return self.load > 0.5 * self.machine_cores


def read(root: Path = Path("/"), allowed: set[int] | None = None) -> Host:
    """The facts below `root`; `allowed` as in topology.read."""
    usable = topology.read(root, allowed)
    online = topology.parse_list(kernel_text(root / "sys/devices/system/cpu/online"))
    whole = topology.read(root, online) if online else usable
    limit = cgroup.memory_limit(root)
    family = cpu.cpu_info("cpu family", root)
    return Host(
        cpu=cpu.cpu_name(root),
        vendor=cpu.cpu_info("vendor_id", root),
        family=int(family) if family.isdigit() else 0,
        virtual="hypervisor" in cpu.cpu_flags(root),
        sockets=usable.sockets,
        nodes=tuple(round(size, 1) for _, size in sorted(usable.memory.items())),
        nodes_with_cores=len(usable.nodes),
        cores=len(usable.cores),
        threads_per_core=usable.threads_per_core,
        machine_cores=len(whole.cores),
        quota=usable.quota,
        quota_by=usable.quota_by,
        usable=usable.usable,
        memory=cpu.memory_info("MemTotal", root) / _GIB,
        memory_limit=None if limit is None else limit / _GIB,
        available=cpu.available_bytes(root) / _GIB,
        load=os.getloadavg()[0],
        clock=clock(root),
        disk={str(folder): _free(folder) for folder in dict.fromkeys((Path.cwd(), hub_cache()))},
        shared_memory=_free(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
    )


def clock(root: Path) -> Clock:
    """The clock over all CPUs: the mean of the current one, the lowest of the allowed ones."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))

    def values(name: str) -> list[float]:
        texts = [kernel_text(folder / name).strip() for folder in folders]
        return [int(text) / 1e6 for text in texts if text.isdigit()]

    now = values("scaling_cur_freq")
    megahertz = cpu.cpu_info("cpu MHz", root)
    reported = float(megahertz) / 1000 if megahertz else None
    first = folders[0] if folders else root / "none"
    return Clock(
        now=sum(now) / len(now) if now else reported,
        base=min(values("base_frequency"), default=None),
        highest=max(values("cpuinfo_max_freq"), default=None),
        allowed=min(values("scaling_max_freq"), default=None),
        governor=kernel_text(first / "scaling_governor").strip() or None,
        driver=kernel_text(first / "scaling_driver").strip() or None,
        throttled=throttled(root),
    )


def throttled(root: Path = Path("/")) -> int | None:
    """How often cores and packages were throttled because of heat; None if it is not counted."""
    cpus = root / "sys/devices/system/cpu"
    texts = [kernel_text(path) for path in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    counts = [int(text) for text in texts if text.strip().isdigit()]
    return sum(counts) if counts else None


def hub_cache() -> Path:
    """The folder that huggingface_hub downloads to."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("HF_HOME") or f"{cache}/huggingface")
    try:
        return folder.expanduser()
    except RuntimeError:  # a container's user without a name or a home folder
        return folder


def _free(folder: Path) -> float | None:
    """Free GiB on the disk of `folder`, which need not exist yet; None without access."""
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(existing).free / _GIB
    except PermissionError:
        return None
