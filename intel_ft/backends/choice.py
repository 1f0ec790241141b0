"""Which backend runs a config, and why; called from training, distributed and insight."""

from functools import cache

import torch

from intel_ft.backends import cpu, cuda, ipex
from intel_ft.config import BackendConfig, Config, ModelConfig
from intel_ft.decisions import Decision
from intel_ft.host import devices

_OF_CPUS = {"ccl", "mpi", "gloo"}


def choose(config: Config) -> Decision:
    """`cpu`, `cuda` or `ipex`. Raises EnvironmentProblem where what is asked for is not there."""
    reason = cpu_only_setting(config)
    return choose_by_name(config.backend.name) if reason is None else Decision("backend.name", "cpu", reason)


@cache
def choose_by_name(name: str) -> Decision:
    """As `choose`, for a backend's name, where nothing else of a config matters."""
    if name == "ipex":
        ipex.require()
    if name in ("cpu", "ipex"):
        return Decision("backend.name", name, "set in the config")
    problem = devices.why_no_gpu()
    if name == "cuda":
        if problem is not None:
            raise cuda.missing(problem)
        return Decision("backend.name", "cuda", "set in the config")
    if problem is not None:
        return Decision("backend.name", "cpu", f"the native PyTorch path; {problem}")
    return Decision("backend.name", "cuda", f"torch sees {devices.gpu_name()}, faster than any CPU")


def select(
    backend: BackendConfig, model: ModelConfig, name: str, sharing: int = 1, local_rank: int = 0
) -> cpu.Backend:
    """Decide device, dtype and threads for this process, and set what torch has to be told.

    name: `choose`'s; `sharing` ranks run on this host, this one is `local_rank` of them.
    """
    if name == "ipex":
        return ipex.select(backend, model, sharing)
    host = cpu.select(backend, model, sharing, multiplies=name == "cpu")
    return host if name == "cpu" else cuda.select(model, host, local_rank)


def cpu_only_setting(config: Config) -> str | None:
    """What an automatic choice has to respect, or None; a config that says cuda was checked when
    read.
    """
    if config.backend.name != "auto":
        return None
    if config.model.base_dtype == "int8":
        return "model.base_dtype=int8 multiplies on CPUs only"
    if config.backend.prepack is True:
        return "backend.prepack=true is for CPUs"
    if config.backend.compile is True:
        return "backend.compile=true is for CPUs"
    if config.backend.collective in _OF_CPUS:
        return f"backend.collective={config.backend.collective} is for CPUs"
    return None


def device_of(name: str, local_rank: int) -> torch.device:
    """Where the tensors of this rank are."""
    return torch.device("cuda", local_rank) if name == "cuda" else torch.device("cpu")
