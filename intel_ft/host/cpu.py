"""This host's processor and free memory, as the kernel reports them.

Imports nothing heavy. Files are read below a root folder, so that recorded trees of other machines
can be read too. A process's own memory comes from /proc/self and not from psutil, which reads
/proc/PID: a container with its own PID namespace may see its host's /proc, where that is another
process or none.
"""

import os
import platform
import resource
from pathlib import Path

from intel_ft.host import cgroup
from intel_ft.host.procfs import kernel_text

GIB = 2**30
_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_WITHOUT_BF16 = {
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI"),
}
"""Values of _ISA_VARIABLES with which oneDNN does not use bf16 instructions (oneDNN's developer
guide, CPU dispatcher control)."""


def cpu_flags(root: Path = Path("/")) -> set[str]:
    """The CPU's instruction-set flags."""
    return set(cpu_info("flags", root).split())


def cpu_name(root: Path = Path("/")) -> str:
    """The CPU's model name."""
    return cpu_info("model name", root) or platform.processor() or platform.machine()


def cpu_info(key: str, root: Path = Path("/")) -> str:
    """The first value of `key` in /proc/cpuinfo; empty if there is none."""
    return _field(root / "proc/cpuinfo", key)


def memory_info(key: str, root: Path = Path("/")) -> int:
    """Bytes of `key` in /proc/meminfo, such as MemTotal; 0 if there is none."""
    return _field_bytes(root / "proc/meminfo", key)


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes this process can still allocate: free memory, control groups, address-space limit."""
    limits = [memory_info("MemAvailable", root)]
    if (room := cgroup.memory_room(root)) is not None:
        limits.append(room)
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        limits.append(space - statm_pages(0) * resource.getpagesize())
    return max(0, min(limits))


def statm_pages(field: int) -> int:
    """A field of /proc/self/statm (proc(5)), in pages: 0 address space, 1 resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[field])


def bf16_limit() -> str | None:
    """The environment variable that keeps oneDNN from using bf16 instructions, or None."""
    for name in _ISA_VARIABLES:
        if (value := os.environ.get(name, "")).upper() in _WITHOUT_BF16:
            return f"{name}={value} disables bf16 instructions"
    return None


def rss_gib() -> float:
    """Resident memory of this process now, in GiB."""
    return statm_pages(1) * resource.getpagesize() / GIB


def peak_rss_gib() -> float:
    """Peak resident memory of this process, in GiB.

    VmHWM and not ru_maxrss, which a process inherits from its parent.
    """
    if not (peak := _field_bytes(Path("/proc/self/status"), "VmHWM")):
        raise RuntimeError("/proc/self/status has no VmHWM")
    return peak / GIB


def _field(path: Path, key: str) -> str:
    """The first value of `key` in a file of lines such as `key : value`."""
    for line in kernel_text(path).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _field_bytes(path: Path, key: str) -> int:
    """The value of `key`, which the file has in KiB; 0 if there is none."""
    return int(_field(path, key).partition(" ")[0] or 0) * 1024
