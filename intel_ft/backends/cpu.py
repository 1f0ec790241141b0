"""The native CPU backend: dtype, threads and allocator."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from intel_ft.config_sections import BackendConfig, ModelConfig
from intel_ft.decisions import Decision
from intel_ft.errors import UserError
from intel_ft.host import topology
from intel_ft.host.allocator import keep_few_kernels, keep_freed_memory
from intel_ft.host.cpu import bf16_limit, cpu_flags
from intel_ft.host.devices import CPU
from intel_ft.plurals import count_of

Optimize = Callable[[Any, torch.optim.Optimizer], None]
"""Converts model and optimizer in place, before the first step."""


@dataclass(frozen=True)
class Backend:
    """Device, dtype and threads of this process, and the reasons."""

    dtype: torch.dtype
    threads: int
    decisions: tuple[Decision, ...]
    device: torch.device = CPU
    optimize: Optimize | None = None


def select(
    backend: BackendConfig,
    model: ModelConfig,
    sharing: int = 1,
    *,
    computes: bool = True,
    mixture: bool = False,
) -> Backend:
    """Decide dtype and threads for this host, which `sharing` ranks share, and set them in torch.

    Also configures the allocator. computes: whether the model runs on this CPU and not on a GPU;
    mixture: whether it is a mixture of experts.
    Raises UserError for a dtype that does not work on CPUs.
    """
    if computes and model.dtype == "float16":
        raise UserError(
            "model.dtype=float16 works only on GPUs: set model.dtype=bfloat16 or float32"
        )
    dtype, dtype_reason = dtype_for(model)
    threads, threads_reason = _threads(backend, sharing)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else Accelerate, under a launcher, changes it
    decisions = (
        Decision("model.dtype", str(dtype).removeprefix("torch."), dtype_reason),
        Decision("backend.threads", str(threads), threads_reason),
        keep_freed_memory(),
        keep_few_kernels(mixture=mixture),
    )
    return Backend(dtype, threads, decisions)


def dtype_for(model: ModelConfig) -> tuple[torch.dtype, str]:
    """The dtype for this CPU, and why."""
    if model.dtype != "auto":
        return getattr(torch, model.dtype), "set in the config"
    return fastest_dtype()


def fastest_dtype() -> tuple[torch.dtype, str]:
    """The dtype of this CPU's fastest GEMMs, and why: bfloat16 if it has instructions for it."""
    if (limit := bf16_limit()) is not None:
        return torch.float32, limit
    flags = cpu_flags()
    if "amx_bf16" in flags:
        return torch.bfloat16, "this CPU advertises AMX"
    if "avx512_bf16" in flags:
        return torch.bfloat16, "this CPU has AVX512-BF16"
    return torch.float32, "this CPU has neither AMX nor AVX512-BF16, so bf16 would be emulated"


def _threads(backend: BackendConfig, sharing: int) -> tuple[int, str]:
    allowed = len(os.sched_getaffinity(0))
    if isinstance(backend.threads, int):
        if not 1 <= backend.threads <= allowed:
            raise UserError(
                f"backend.threads={backend.threads}: this process may use 1 to "
                f"{count_of(allowed, 'thread')}: set a number in this range, or auto"
            )
        return backend.threads, "set in the config"
    host = topology.read()
    if sharing > 1 and topology.is_bound():
        return len(host.cores), "the cores that this rank is bound to"
    shared = f", shared by {sharing} ranks" if sharing > 1 else ""
    if host.quota is not None and host.usable < len(host.cores):
        cores = max(1, host.usable // sharing)
        return cores, f"{host.quota_by} allows {count_of(host.quota, 'core')}{shared}"
    return max(1, len(host.cores) // sharing), f"the cores this process may use{shared}"
