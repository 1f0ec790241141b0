"""NVIDIA GPUs: whether they can be used, dtype, memory; called from backends.choice, training and
insight.
"""

import torch

from intel_ft.backends.cpu import GIB, Backend
from intel_ft.config import ModelConfig
from intel_ft.decisions import Decision
from intel_ft.errors import EnvironmentProblem, UserError

LEAST_CAPABILITY = (7, 0)
"""Of the first GPUs with tensor cores (NVIDIA's CUDA programming guide, compute capabilities)."""

BF16_CAPABILITY = (8, 0)
"""From here on tensor cores take bf16, and FlashAttention runs."""


def why_not_usable() -> str | None:
    """None where torch can compute on a GPU here."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return f"{gpu_name()} has compute capability {_text(capability)}, and 7.0 is needed"
    return None


def missing(problem: str) -> EnvironmentProblem:
    """The error where a config asks for cuda."""
    return EnvironmentProblem(
        f"backend.name=cuda: {problem}: install a CUDA build of torch on a machine with a GPU, or "
        "set backend.name=cpu"
    )


def gpu_name() -> str:
    """Of the first GPU, such as NVIDIA H200."""
    return torch.cuda.get_device_name(0)


def select(model: ModelConfig, host: Backend, local_rank: int) -> Backend:
    """This rank's GPU and the dtype that it multiplies in; `host` is what its CPU threads do.

    Raises EnvironmentProblem where the host has fewer GPUs than ranks, UserError for bf16 on a GPU
    without it.
    """
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise EnvironmentProblem(
            f"rank {local_rank} of this host has no GPU: torch sees {count}, so start {count} ranks"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dtype, reason = dtype_for(model, torch.cuda.get_device_capability(device))
    decisions = (
        Decision(
            "GPU", torch.cuda.get_device_name(device), f"{memory_bytes(device) / GIB:.0f} GiB"
        ),
        Decision("model.dtype", str(dtype).removeprefix("torch."), reason),
        *(d for d in host.decisions if d.name == "backend.threads"),
    )
    return Backend(dtype, host.threads, decisions, device)


def dtype_for(model: ModelConfig, capability: tuple[int, int]) -> tuple[torch.dtype, str]:
    """What a GPU of this compute capability multiplies in, and why."""
    has_bf16 = capability >= BF16_CAPABILITY
    if model.dtype == "bfloat16" and not has_bf16:
        raise UserError(
            f"model.dtype=bfloat16: a GPU of compute capability {_text(capability)} has no bf16: "
            "set model.dtype=float16"
        )
    if model.dtype != "auto":
        return getattr(torch, model.dtype), "set in the config"
    if has_bf16:
        return torch.bfloat16, "this GPU's tensor cores take bf16"
    return torch.float16, f"compute capability {_text(capability)} has no bf16"


def memory_bytes(device: torch.device) -> int:
    """All memory of the GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def available_bytes(device: torch.device) -> int:
    """What is free of it, and what torch holds and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_gib(device: torch.device) -> dict[str, float]:
    """The most GPU memory that tensors took, and that torch held for them, since `forget_peak`;
    nothing for a CPU. What the CUDA context takes (about half a GiB) is in neither.
    """
    if device.type == "cpu":
        return {}
    return {
        "peak_gpu_gib": torch.cuda.max_memory_allocated(device) / GIB,
        "peak_gpu_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
    }


def forget_peak(device: torch.device) -> None:
    """Give back what is not used, and measure the peak from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def finish(device: torch.device) -> None:
    """Wait for the GPU, so that a clock read next has the work in it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _text(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
