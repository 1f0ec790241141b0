"""What the kernel says of this host's processor and free memory; called from backends.cpu and
insight.doctor. Imports nothing heavy.

Everything is read below a root folder, so that a recorded tree of another machine can be read too.
"""

import platform
import resource
from pathlib import Path

from intel_ft.host import cgroup


def cpu_flags(root: Path = Path("/")) -> set[str]:
    """The instruction-set flags that the kernel reports."""
    return set(cpu_info("flags", root).split())


def cpu_name(root: Path = Path("/")) -> str:
    """The CPU's model name."""
    return cpu_info("model name", root) or platform.processor() or platform.machine()


def cpu_info(key: str, root: Path = Path("/")) -> str:
    """The first value of `key` in /proc/cpuinfo; empty where there is none."""
    try:
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""


def memory_info(key: str, root: Path = Path("/")) -> int:
    """Bytes of `key` in /proc/meminfo, such as MemTotal; 0 where there is none."""
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0]) * 1024
    except OSError:
        pass
    return 0


def available_bytes(root: Path = Path("/")) -> int:
    """Memory this process can still take: free memory, control groups and address-space limit."""
    limits = [memory_info("MemAvailable", root)]
    if (room := cgroup.memory_room(root)) is not None:
        limits.append(room)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        limits.append(space - statm_pages(0) * resource.getpagesize())
    return max(0, min(limits))


def statm_pages(field: int) -> int:
    """A field of /proc/self/statm (proc(5)): 0 the address space, 1 what is resident, in pages."""
    return int(Path("/proc/self/statm").read_text().split()[field])
