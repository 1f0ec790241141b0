"""The native CPU backend: dtype, threads and memory; called from training, insight and cli."""

import os
import platform
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from intel_ft.backends.allocator import keep_freed_memory
from intel_ft.config import BackendConfig, ModelConfig
from intel_ft.decisions import Decision
from intel_ft.distributed import topology
from intel_ft.errors import UserError

GIB = 2**30
Optimize = Callable[[Any, torch.optim.Optimizer], None]


@dataclass(frozen=True)
class Backend:
    """What this process computes with; `optimize` is what it does to model and optimizer, in place,
    before the first step.
    """

    dtype: torch.dtype
    threads: int
    decisions: tuple[Decision, ...]
    optimize: Optimize | None = None


def select(backend: BackendConfig, model: ModelConfig, sharing: int = 1) -> Backend:
    """Decide dtype and threads for this machine, where `sharing` ranks run; set torch's thread
    count and the allocator.
    """
    dtype, dtype_reason = _dtype(model)
    threads, threads_reason = _threads(backend, sharing)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else Accelerate, under a launcher, sets another
    decisions = (
        Decision("backend.name", "cpu", "the native PyTorch path"),
        Decision("model.dtype", str(dtype).removeprefix("torch."), dtype_reason),
        Decision("backend.threads", str(threads), threads_reason),
        keep_freed_memory(),
    )
    return Backend(dtype, threads, decisions)


def _dtype(model: ModelConfig) -> tuple[torch.dtype, str]:
    if model.dtype != "auto":
        return getattr(torch, model.dtype), "set in the config"
    flags = cpu_flags()
    if "amx_bf16" in flags:
        return torch.bfloat16, "this CPU advertises AMX"
    if "avx512_bf16" in flags:
        return torch.bfloat16, "this CPU has AVX512-BF16"
    return torch.float32, "this CPU has neither AMX nor AVX512-BF16, bf16 would be emulated"


def _threads(backend: BackendConfig, sharing: int) -> tuple[int, str]:
    allowed = len(os.sched_getaffinity(0))
    if isinstance(backend.threads, int):
        if not 1 <= backend.threads <= allowed:
            raise UserError(
                f"backend.threads={backend.threads}: this process may use 1 to {allowed}"
            )
        return backend.threads, "set in the config"
    host = topology.read()
    if sharing > 1 and topology.bound():
        return len(host.cores), "the cores that this rank is bound to"
    shared = f", shared by {sharing} ranks" if sharing > 1 else ""
    if host.usable < len(host.cores):
        cores = max(1, host.usable // sharing)
        return cores, f"the control group allows {host.quota:g} cores{shared}"
    return max(1, len(host.cores) // sharing), f"the cores this process may use{shared}"


def cpu_flags() -> set[str]:
    """The instruction-set flags that the kernel reports."""
    return set(_cpuinfo("flags").split())


def cpu_name() -> str:
    """The CPU's model name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""


def available_bytes() -> int:
    """Memory this process can still take: free memory, control group and address-space limit."""
    limits = []
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    try:
        cap = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if cap != "max":
            limits.append(int(cap) - used)
    except (OSError, ValueError):
        pass
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        limits.append(space - _statm_pages(0) * resource.getpagesize())
    return max(0, min(limits))


def _statm_pages(field: int) -> int:
    return int(Path("/proc/self/statm").read_text().split()[field])


def rss_gib() -> float:
    """Resident memory of this process now, in GiB."""
    return _statm_pages(1) * resource.getpagesize() / GIB
