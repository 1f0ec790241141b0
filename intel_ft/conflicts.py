"""Which settings of different sections exclude each other; called from config."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intel_ft.config import Config

_AS_THEY_ARE = (
    "needs the base's weights as they are: no qlora, no model.base_dtype, no backend.prepack=true"
)


def conflicts(config: "Config") -> Iterator[str]:
    """What does not go together in `config`, a sentence each."""
    method, backend, train = config.method, config.backend, config.train
    row, longest = train.max_tokens_per_row, config.data.max_length
    if isinstance(row, int) and row < longest:
        yield f"train.max_tokens_per_row ({row}) must be at least data.max_length ({longest})"
    if train.early_stopping and not (config.data.eval or config.data.eval_fraction):
        yield "train.early_stopping needs data.eval or data.eval_fraction"
    prepack = backend.prepack is True
    laid_out = config.base_dtype != "auto" or prepack
    if method.trains_all and (config.model.base_dtype != "auto" or prepack):
        key = "backend.prepack" if prepack else "model.base_dtype"
        yield f"{key} is for frozen weights, and all weights are trained here"
    if method.use_dora and laid_out:
        yield f"method.use_dora {_AS_THEY_ARE}"
    if backend.compile is True and laid_out:
        yield f"backend.compile=true {_AS_THEY_ARE}"
    if backend.name == "cpu" and backend.collective == "nccl":
        yield "backend.collective=nccl is for backend.name=cuda"
    if backend.name == "cuda":
        yield from _on_cuda(config)
    if backend.name == "ipex":
        yield from _on_ipex(config)


def _on_cuda(config: "Config") -> Iterator[str]:
    backend = config.backend
    if backend.collective not in ("auto", "nccl"):
        yield f"backend.collective={backend.collective} is for backend.name=cpu"
    if backend.prepack is True:
        yield "backend.prepack is for backend.name=cpu"
    if config.model.base_dtype == "int8":
        yield "model.base_dtype=int8 is for backend.name=cpu"
    if backend.compile is True:
        yield "backend.compile=true is for backend.name=cpu: on a GPU it has its own"


def _on_ipex(config: "Config") -> Iterator[str]:
    method, needed = config.method, "backend.name=ipex is for LoRA on a bf16 base"
    if method.trains_all or method.use_dora:
        yield f"{needed}: no full weights, no method.use_dora"
    if config.base_dtype != "auto" or config.model.dtype == "float32":
        yield f"{needed}: no qlora, model.base_dtype or model.dtype=float32"
    if config.backend.compile is True:
        yield "backend.compile=true is for backend.name=cpu, not for ipex"
