"""Intel Extension for PyTorch as the backend, for those whose stack is still on it; called from
training.setup and insight. It is archived, and slower than the native path (docs/ipex.md).
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from intel_ft.config import BackendConfig, ModelConfig
from intel_ft.decisions import Decision
from intel_ft.errors import EnvironmentProblem
from intel_ft.versions import installed

if TYPE_CHECKING:
    from intel_ft.backends.cpu import Backend

PACKAGE = "intel_extension_for_pytorch"
RELEASE = "2.8"
REMEDY = "run `make setup-ipex` and take .venv-ipex/bin/intel-ft, or set backend.name=cpu"


def require() -> None:
    """Raise EnvironmentProblem where IPEX cannot be imported: looked up, not tried, because on a
    mismatch its `__init__` calls os.exit, which does not exist.
    """
    ipex, torch = (installed(package) for package in (PACKAGE, "torch"))
    if why_not := mismatch(ipex, torch):
        raise EnvironmentProblem(f"backend.name=ipex: {why_not}: {REMEDY}")


def mismatch(ipex: str | None, torch: str | None) -> str | None:
    """Why these versions cannot work together, or None."""
    if ipex is None:
        return f"{PACKAGE} is not installed"
    if torch is None or _release(ipex) != RELEASE or _release(torch) != RELEASE:
        return f"it needs {PACKAGE} {RELEASE} and torch {RELEASE}, here are {ipex} and {torch}"
    return None


def select(backend: BackendConfig, model: ModelConfig, sharing: int = 1) -> "Backend":
    """As backends.cpu.select, in bf16 and with `ipex.optimize`. Raises EnvironmentProblem."""
    require()
    import torch

    from intel_ft.backends import cpu

    for chatter in ("IPEX", "torch.utils.cpp_extension"):  # of each bf16 weight; of no CUDA device
        logging.getLogger(chatter).setLevel(logging.ERROR)
    import intel_extension_for_pytorch as ipex

    if not ipex._C.onednn_has_bf16_support():
        raise EnvironmentProblem("backend.name=ipex: IPEX has no bf16 on this CPU without AVX512")
    prepack = backend.prepack is not False
    native = cpu.select(backend, model.model_copy(update={"dtype": "bfloat16"}), sharing)
    decisions = (
        Decision("model.dtype", "bfloat16", "what ipex.optimize is for"),
        *native.decisions[1:],
        Decision("backend.prepack", "on" if prepack else "off", _why(backend.prepack)),
        Decision("backend.compile", "off", "not with IPEX"),
    )

    def optimize(model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Cast what trains to bf16 beside float32 masters, which the optimizer steps on, and
        replace linear layers by IPEX's. `state_dict` of both goes on giving plain float32.
        """
        model.train()
        ipex.optimize(
            model,
            optimizer=optimizer,
            dtype=torch.bfloat16,
            inplace=True,
            weights_prepack=prepack,
        )

    return replace(native, decisions=decisions, optimize=optimize)


def archived(gemm_rate: float) -> Decision:
    """What a run says of IPEX at its start; `gemm_rate` FLOP/s is native torch's, just measured."""
    return Decision(
        "IPEX",
        "archived",
        f"2.8.0 is its last release; native torch {installed('torch')} multiplies at "
        f"{gemm_rate / 1e9:,.0f} GFLOP/s here, measured just now, and backend.name=cpu trains "
        "faster: `intel-ft bench train --peer ours-ipex` shows by how much",
    )


def _why(prepack: object) -> str:
    return "ipex.optimize's own default" if prepack == "auto" else "set in the config"


def _release(number: str) -> str:
    return ".".join(number.split(".")[:2])
