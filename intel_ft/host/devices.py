"""Devices as torch sees them: the CPU, and what an NVIDIA GPU can do and holds. Imports torch."""

import torch

from intel_ft.host.cpu import GIB

CPU = torch.device("cpu")

LEAST_CAPABILITY = (7, 0)
"""Of the first GPUs with tensor cores (NVIDIA's CUDA programming guide, compute capabilities)."""

BF16_CAPABILITY = (8, 0)
"""From here on tensor cores take bf16, and FlashAttention runs."""


def why_no_gpu() -> str | None:
    """None where torch can compute on a GPU here."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return (
            f"{gpu_name()} has compute capability {capability_text(capability)}, and 7.0 is needed"
        )
    return None


def gpu_name() -> str:
    """Of the first GPU, such as NVIDIA H200."""
    return torch.cuda.get_device_name(0)


def memory_bytes(device: torch.device) -> int:
    """All memory of the GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def available_bytes(device: torch.device) -> int:
    """What is free of it, and what torch holds and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_gib(device: torch.device) -> dict[str, float]:
    """The most GPU memory that tensors took, and that torch held for them, since `reset_peak`;
    nothing for a CPU. What the CUDA context takes (about half a GiB) is in neither.
    """
    if device.type == "cpu":
        return {}
    return {
        "peak_gpu_gib": torch.cuda.max_memory_allocated(device) / GIB,
        "peak_gpu_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
    }


def reset_peak(device: torch.device) -> None:
    """Give back what is not used, and measure the peak from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU, so that a clock read next has the work in it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def capability_text(capability: tuple[int, int]) -> str:
    """A compute capability as NVIDIA writes it, such as 8.0."""
    return ".".join(map(str, capability))
