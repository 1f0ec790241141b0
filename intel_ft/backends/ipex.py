"""The IPEX backend (Intel Extension for PyTorch), for users whose stack still depends on it.

IPEX is archived, and slower than the native path (docs/ipex.md).
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from intel_ft.config_sections import BackendConfig, ModelConfig
from intel_ft.decisions import Decision
from intel_ft.errors import EnvironmentProblem
from intel_ft.versions import installed

if TYPE_CHECKING:
    from intel_ft.backends.cpu import Backend

PACKAGE = "intel_extension_for_pytorch"
RELEASE = "2.8"
REMEDY = "run `make setup-ipex` and use .venv-ipex/bin/intel-ft, or set backend.name=cpu"


def require() -> None:
    """Raise EnvironmentProblem if the installed versions of IPEX and torch do not match.

    Versions are compared before the import, because on a mismatch IPEX's `__init__` calls os.exit,
    which does not exist.
    """
    if why_not := mismatch(installed(PACKAGE), installed("torch")):
        raise EnvironmentProblem(f"backend.name=ipex: {why_not}: {REMEDY}")


def mismatch(ipex: str | None, torch: str | None) -> str | None:
    """Why these versions cannot work together, or None."""
    if ipex is None:
        return f"{PACKAGE} is not installed"
    if torch is None or _release(ipex) != RELEASE or _release(torch) != RELEASE:
        return f"it needs {PACKAGE} {RELEASE} and torch {RELEASE}, found {ipex} and {torch}"
    return None


def select(backend: BackendConfig, model: ModelConfig, sharing: int = 1) -> "Backend":
    """As backends.cpu.select, but bf16 and `ipex.optimize`. Raises EnvironmentProblem."""
    require()
    import torch

    from intel_ft.backends import cpu

    for name in ("IPEX", "torch.utils.cpp_extension"):  # warn of each bf16 weight; of no CUDA
        logging.getLogger(name).setLevel(logging.ERROR)
    import intel_extension_for_pytorch as ipex

    if not ipex._C.onednn_has_bf16_support():
        raise EnvironmentProblem(
            "backend.name=ipex: IPEX needs AVX512 for bf16, which this CPU lacks: set "
            "backend.name=cpu"
        )
    prepack = backend.prepack is not False
    native = cpu.select(backend, model.model_copy(update={"dtype": "bfloat16"}), sharing)
    decisions = (
        Decision("model.dtype", "bfloat16", "ipex.optimize is made for bf16"),
        *native.decisions[1:],
        Decision("backend.prepack", "on" if prepack else "off", _prepack_reason(backend.prepack)),
        Decision("backend.compile", "off", "not supported with IPEX"),
    )

    def optimize(model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Cast trained weights to bf16 with float32 master weights, and use IPEX's linear layers.

        The optimizer updates the master weights. `state_dict` of model and optimizer still returns
        plain float32.
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
    """The notice at the start of a run; gemm_rate: native torch's just measured rate, in FLOP/s."""
    return Decision(
        "IPEX",
        "archived",
        f"2.8.0 is its last release; GEMMs of native torch {installed('torch')} reach "
        f"{gemm_rate / 1e9:,.0f} GFLOP/s here, measured just now, and backend.name=cpu trains "
        "faster: `intel-ft bench train --peer ours-ipex` shows by how much",
    )


def _prepack_reason(prepack: object) -> str:
    return "the default of ipex.optimize" if prepack == "auto" else "set in the config"


def _release(number: str) -> str:
    return ".".join(number.split(".")[:2])
