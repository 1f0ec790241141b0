"""This host's processor and free memory, as the kernel reports them.

Imports nothing heavy. Files are read below a root folder, so that recorded trees of other machines
can be read too. A process's own memory comes from /proc/self and not from psutil, which reads
/proc/PID: a container with its own PID namespace may see its host's /proc, where that is another
process or none.
"""

import os
import platform
import resource
from collections.abc import Callable
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
_WITHOUT_VNNI = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE"}


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
    return _isa_limit("bf16 instructions", lambda value: value not in _WITHOUT_BF16)


def vnni_limit() -> str | None:
    """The environment variable that keeps oneDNN from using AVX512-VNNI, or None."""
    return _isa_limit("AVX512-VNNI", lambda value: value not in _WITHOUT_VNNI)


def amx_limit() -> str | None:
    """The environment variable that keeps oneDNN from using AMX, or None."""
    return _isa_limit("AMX", lambda value: "AMX" in value or value in ("", "ALL", "DEFAULT"))


def _isa_limit(instructions: str, allows: Callable[[str], bool]) -> str | None:
    for name in _ISA_VARIABLES:
        if not allows((value := os.environ.get(name, "")).upper()):
            return f"{name}={value} disables {instructions}"
    return None


def cache_bytes(level: int, root: Path = Path("/")) -> int:
    """Bytes of the first core's data cache of this level; 0 if the kernel does not report it."""
    for folder in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level_text, kind, size = (
            kernel_text(folder / n).strip() for n in ("level", "type", "size")
        )
        if level_text == str(level) and kind != "Instruction" and size.removesuffix("K").isdigit():
            return int(size.removesuffix("K")) * 1024
    return 0


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
