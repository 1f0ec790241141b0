"""Facts of the machine: processor, memory, limits, clock and disks; called from
insight.doctor.examine.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from intel_ft.host import cgroup, topology
from intel_ft.host import cpu as host
from intel_ft.host.procfs import kernel_text

_GIB = 2**30


@dataclass(frozen=True)
class Clock:
    """Frequencies in GHz, None where the kernel does not say (as in most virtual machines): now,
    at base, the highest of the CPU and the highest allowed; how often cores were throttled.
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
    """What this process may use of the machine. Memory and disk are GiB, `quota` is in cores,
    `quota_by` who set it, `disk` has the free space of the working folder and of the Hub's cache,
    None where this user may not look.
    """

    cpu: str
    vendor: str
    family: int
    virtual: bool
    sockets: int
    nodes: tuple[float, ...]
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
        """Whether others compute here, so that rates are not the machine's best."""
        return self.load > 0.5 * self.machine_cores


def read(root: Path = Path("/"), allowed: set[int] | None = None) -> Host:
    """The facts below `root`; `allowed` as in topology.read."""
    found = topology.read(root, allowed)
    online = topology.parse_list(kernel_text(root / "sys/devices/system/cpu/online"))
    whole = topology.read(root, online) if online else found
    limit = cgroup.memory_limit(root)
    family = host.cpu_info("cpu family", root)
    return Host(
        cpu=host.cpu_name(root),
        vendor=host.cpu_info("vendor_id", root),
        family=int(family) if family.isdigit() else 0,
        virtual="hypervisor" in host.cpu_flags(root),
        sockets=found.sockets,
        nodes=tuple(round(size, 1) for _, size in sorted(found.memory.items())),
        cores=len(found.cores),
        threads_per_core=found.threads_per_core,
        machine_cores=len(whole.cores),
        quota=found.quota,
        quota_by=found.quota_by,
        usable=found.usable,
        memory=host.memory_info("MemTotal", root) / _GIB,
        memory_limit=None if limit is None else limit / _GIB,
        available=host.available_bytes(root) / _GIB,
        load=os.getloadavg()[0],
        clock=clock(root),
        disk={str(folder): _free(folder) for folder in dict.fromkeys((Path.cwd(), hub_cache()))},
        shared_memory=_free(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
    )


def clock(root: Path) -> Clock:
    """The clock of all CPUs: the mean of now, the lowest of what is allowed."""
    folders = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))

    def values(name: str) -> list[float]:
        texts = [kernel_text(folder / name).strip() for folder in folders]
        return [int(text) / 1e6 for text in texts if text.isdigit()]

    now = values("scaling_cur_freq")
    megahertz = host.cpu_info("cpu MHz", root)
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
    """How often cores and packages were slowed down for heat; None where that is not counted."""
    cpus = root / "sys/devices/system/cpu"
    texts = [kernel_text(path) for path in cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    counts = [int(text) for text in texts if text.strip().isdigit()]
    return sum(counts) if counts else None


def hub_cache() -> Path:
    """The folder that the Hub's library downloads to."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("HF_HOME") or f"{cache}/huggingface")
    try:
        return folder.expanduser()
    except RuntimeError:  # a container's user without a name or a home
        return folder


def _free(folder: Path) -> float | None:
    """Free GiB where `folder` is or would be made."""
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(there).free / _GIB
    except PermissionError:
        return None
