"""What the kernel says of this host's processor and free memory; called from backends.cpu and
insight.doctor. Imports nothing heavy.

Everything is read below a root folder, so that a recorded tree of another machine can be read too.
"""

import os
import platform
import resource
from pathlib import Path

from intel_ft.host import cgroup

GIB = 2**30
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_WITHOUT_BF16 = {
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI"),
}
"""Values of them that keep oneDNN from the CPU's bf16 products (oneDNN's developer guide, CPU
dispatcher control)."""


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


def bf16_limit() -> str | None:
    """What in the environment keeps oneDNN from this CPU's bf16 products, or None."""
    for name in _LIMITS:
        if (value := os.environ.get(name, "")).upper() in _WITHOUT_BF16:
            return f"{name}={value} forbids bf16 products"
    return None


def rss_gib() -> float:
    """Resident memory of this process now, in GiB."""
    return statm_pages(1) * resource.getpagesize() / GIB


def peak_rss_gib() -> float:
    """The most memory this process has had resident, in GiB.

    VmHWM and not ru_maxrss, which a process inherits from the one that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / GIB
    raise RuntimeError("/proc/self/status has no VmHWM")
