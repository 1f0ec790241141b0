"""The CUDA backend: this rank's NVIDIA GPU and dtype."""

import platform

import torch

from intel_ft.backends.cpu import Backend
from intel_ft.config_sections import ModelConfig
from intel_ft.decisions import Decision
from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.host.cpu import GIB
from intel_ft.host.devices import BF16_CAPABILITY, capability_text, memory_bytes
from intel_ft.plurals import count_of


def missing(problem: str) -> EnvironmentProblem:
    """The error for a config with backend.name=cuda where `problem` rules it out."""
    return EnvironmentProblem(
        f"backend.name=cuda: {problem}: install a CUDA build of torch on a machine with a GPU, or "
        "set backend.name=cpu"
    )


def select(model: ModelConfig, host: Backend, local_rank: int) -> Backend:
    """Select this rank's GPU and dtype; `host` is the backend of its CPU threads.

    Raises EnvironmentProblem where the host has fewer GPUs than ranks, UserError for bf16 on a GPU
    without it.
    """
    dtype, reason = dtype_of_rank(model, local_rank)
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    decisions = (
        Decision(
            "GPU", torch.cuda.get_device_name(device), f"{memory_bytes(device) / GIB:.0f} GiB"
        ),
        Decision("model.dtype", str(dtype).removeprefix("torch."), reason),
        *(d for d in host.decisions if d.name == "backend.threads"),
    )
    return Backend(dtype, host.threads, decisions, device)


def dtype_of_rank(model: ModelConfig, local_rank: int) -> tuple[torch.dtype, str]:
    """The dtype for this rank's GPU, and why. Raises as `select` does, and sets nothing."""
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise EnvironmentProblem(
            f"local rank {local_rank} on {platform.node()} has no GPU: torch sees {count} there: "
            f"start at most {count_of(count, 'rank')} per host"
        )
    return dtype_for(model, torch.cuda.get_device_capability(local_rank))


def dtype_for(model: ModelConfig, capability: tuple[int, int]) -> tuple[torch.dtype, str]:
    """The dtype for a GPU of this compute capability, and why."""
    has_bf16 = capability >= BF16_CAPABILITY
    if model.dtype == "bfloat16" and not has_bf16:
        raise UserError(
            "model.dtype=bfloat16: a GPU of compute capability "
            f"{capability_text(capability)} has no bf16: set model.dtype=float16"
        )
    if model.dtype != "auto":
        return getattr(torch, model.dtype), "set in the config"
    if has_bf16:
        return torch.bfloat16, "this GPU's tensor cores support bf16"
    return torch.float16, f"compute capability {capability_text(capability)} has no bf16"
