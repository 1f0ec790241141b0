"""Devices as torch sees them: the CPU, and the capability and memory of an NVIDIA GPU."""

import torch

from intel_ft.host.cpu import GIB

CPU = torch.device("cpu")

MIN_CAPABILITY = (7, 0)
"""The first GPUs with tensor cores (NVIDIA's CUDA programming guide, compute capabilities)."""

BF16_CAPABILITY = (8, 0)
"""From here on tensor cores support bf16, and FlashAttention runs."""


def why_no_gpu() -> str | None:
    """Why torch cannot compute on a GPU of this machine, or None where it can."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        text = capability_text(capability)
        return f"{gpu_name()} has compute capability {text}, at least 7.0 is needed"
    return None


def gpu_name() -> str:
    """The name of the first GPU, such as NVIDIA H200."""
    return torch.cuda.get_device_name(0)


def memory_bytes(device: torch.device) -> int:
    """Total memory of the GPU, in bytes."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def available_bytes(device: torch.device) -> int:
    """Free memory of the GPU, in bytes, and what torch has reserved but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_gib(device: torch.device) -> dict[str, float]:
    """Peak GPU memory since `reset_peak`, of tensors and reserved by torch; empty for a CPU.

    Neither includes the CUDA context (about half a GiB).
    """
    if device.type == "cpu":
        return {}
    return {
        "peak_gpu_gib": torch.cuda.max_memory_allocated(device) / GIB,
        "peak_gpu_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
    }


def reset_peak(device: torch.device) -> None:
    """Release unused memory, and measure the peak from now on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU, so that a clock that is read next includes its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def capability_text(capability: tuple[int, int]) -> str:
    """A compute capability as NVIDIA writes it, such as 8.0."""
    return ".".join(map(str, capability))
