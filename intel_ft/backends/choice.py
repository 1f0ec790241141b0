"""Which backend runs a config, and why."""

from functools import cache

import torch

from intel_ft.backends import cpu, cuda, ipex
from intel_ft.config import Config
from intel_ft.config_sections import BackendConfig, ModelConfig
from intel_ft.decisions import Decision
from intel_ft.host import devices

_CPU_COLLECTIVES = {"ccl", "mpi", "gloo"}


def choose(config: Config) -> Decision:
    """`cpu`, `cuda` or `ipex`. Raises EnvironmentProblem if the config names a missing one."""
    reason = cpu_only_setting(config)
    if reason is not None:
        return Decision("backend.name", "cpu", reason)
    return choose_by_name(config.backend.name)


@cache
def choose_by_name(name: str) -> Decision:
    """As `choose`, for a backend's name alone, where no other setting of a config matters."""
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
    return Decision(
        "backend.name", "cuda", f"torch sees {devices.gpu_name()}, which is faster than a CPU"
    )


def select(
    backend: BackendConfig,
    model: ModelConfig,
    name: str,
    sharing: int = 1,
    local_rank: int = 0,
    *,
    mixture: bool = False,
) -> cpu.Backend:
    """Decide device, dtype and threads for this process, and set them in torch.

    name: what `choose` returned; sharing: the number of ranks on this host; mixture: whether the
    model is a mixture of experts.
    """
    if name == "ipex":
        return ipex.select(backend, model, sharing)
    host = cpu.select(backend, model, sharing, computes=name == "cpu", mixture=mixture)
    return host if name == "cpu" else cuda.select(model, host, local_rank)


def dtype_of(config: Config, local_rank: int = 0) -> torch.dtype:
    """The dtype that this process computes in: model.dtype, or what `auto` selects here.

    It changes no setting. Raises as `select` does for a GPU that is missing or lacks the dtype.
    """
    name = choose(config).value
    if name == "ipex":
        return torch.bfloat16
    if name == "cuda":
        return cuda.dtype_of_rank(config.model, local_rank)[0]
    return cpu.dtype_for(config.model)[0]


def cpu_only_setting(config: Config) -> str | None:
    """The setting, with the reason, that rules out a GPU where backend.name is auto; else None.

    A config with backend.name=cuda was checked when it was read.
    """
    if config.backend.name != "auto":
        return None
    if (dtype := config.model.base_dtype) in ("int8", "int4"):
        return f"model.base_dtype={dtype} works only on CPUs"
    if config.backend.share_base == "cache":
        return "backend.share_base=cache works only on CPUs"
    for name in ("prepack", "compile", "shard"):
        if getattr(config.backend, name) is True:
            return f"backend.{name}=true works only on CPUs"
    if config.backend.collective in _CPU_COLLECTIVES:
        return f"backend.collective={config.backend.collective} works only on CPUs"
    return None


def device_of(name: str, local_rank: int) -> torch.device:
    """The device of this rank's tensors."""
    return torch.device("cuda", local_rank) if name == "cuda" else torch.device("cpu")
