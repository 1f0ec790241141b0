"""What the ranks of a host share of a frozen base, and by what a prepared base is known again.

models.fast_path converts a model through a `Keep`, which training.host_base gives it.
"""

import hashlib
import json
import platform
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from intel_ft.artifacts.fingerprints import config_fingerprint, hash_of, weights_fingerprint
from intel_ft.decisions import Decision
from intel_ft.host.cpu import cpu_flags, cpu_name
from intel_ft.host.file_pages import FilePages
from intel_ft.kernels.gemm.library import why_no_tiles, why_no_vnni
from intel_ft.layers.mapped import Keep
from intel_ft.layers.mixture import expert_matrices
from intel_ft.layers.own_products import int8_copies, own_base
from intel_ft.models.frozen_base import Layout, frozen_linears
from intel_ft.models.targets import output_layer
from intel_ft.models.weight_files import weight_files
from intel_ft.versions import installed

_LEAST = 2**20  # bytes of a parameter that is worth sharing
_HEAD = 2  # packed copies of the head
_CODE = ("kernels", "layers")  # packages that decide the layouts


class SharedBase(Protocol):
    """How this rank's process shares a base with others. All ranks call both methods."""

    @property
    def copies_for(self) -> int:
        """The ranks of this host among which one copy is shared."""
        ...

    def agree(self, yes: bool, size: int) -> bool:
        """Whether all ranks say yes. size: bytes of the base, about."""
        ...

    def keep(self, facts: dict[str, Any], size: int) -> AbstractContextManager[Keep]:
        """What to convert the base with, inside the block."""
        ...

    def decisions(self) -> list[Decision]:
        """What came of it."""
        ...


@dataclass(frozen=True)
class BaseFiles:
    """Where a base comes from, as long as its weights are those of the files in `folder`."""

    folder: Path

    def facts(self) -> dict[str, Any]:
        """Fingerprints of the files, with their sizes and times, and of the architecture."""
        files = weight_files(self.folder) or sorted(self.folder.glob("*.bin"))
        status = [(path.name, path.stat()) for path in files]
        return {
            "files": [[name, one.st_size, one.st_mtime_ns] for name, one in status],
            "weights": weights_fingerprint(files),
            "config": config_fingerprint(self.folder),
        }


def base_facts(model: Any, layout: Layout, source: BaseFiles | None) -> dict[str, Any]:
    """Everything that decides the converted weights of a model with LoRA.

    source: None if they are not those of any files; then the result means something only among the
    ranks of one run.
    """
    linears = [
        (name, list(module.weight.shape), str(module.weight.dtype))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name
    ]
    experts = [(matrix.path, list(matrix.weight.shape)) for matrix in expert_matrices(model)]
    return {
        "version": installed("intel_ft"),
        "code": _code(),
        "torch": str(torch.__version__),
        "bitsandbytes": installed("bitsandbytes"),
        "machine": platform.machine(),
        "cpu": [cpu_name(), hash_of(" ".join(sorted(cpu_flags())).encode())],
        "instructions": [why_no_tiles(), why_no_vnni()],
        "layout": layout,
        "dtype": str(model.dtype),
        "modules": hash_of(json.dumps([linears, experts]).encode()),
        **({} if source is None else source.facts()),
    }


@cache
def _code() -> str:
    """A hash of the code that lays out weights: a change of it is another layout."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for path in sorted(path for part in _CODE for path in (root / part).rglob("*.*")):
        if path.suffix in (".py", ".cpp", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def shared_bytes(model: Any, layout: Layout) -> int:
    """About the bytes of what ranks share of a base in this layout."""
    weights = sum(linear.weight.numel() for _, _, linear in frozen_linears(model))
    item = model.dtype.itemsize
    each = {"prepacked": 2 * item, "int8": int8_copies(model.dtype), "nf4": 0.52}.get(layout, 0)
    experts = sum(matrix.weight.numel() for matrix in expert_matrices(model))
    head = output_layer(model)
    packs = layout in ("prepacked", "int8", "int4") and own_base(model.dtype) is not None
    packed = packs and head is not None and hasattr(head, "weight")
    total = weights * each + experts * {"int8": 1, "nf4": 0.52}.get(layout, 0)
    if packed:
        total += _HEAD * item * head.weight.numel()
    mapped = FilePages.read()
    return int(total) + sum(one.nbytes for _, one in _others(model, mapped, converted=layout))


def keep_parameters(model: Any, keep: Keep) -> None:
    """Share the large frozen parameters that are as loaded and not pages of a file already."""
    for name, parameter in list(_others(model, FilePages.read())):
        parameter.data = keep(f"parameter {name}", parameter.detach)


def _others(
    model: Any, mapped: FilePages, converted: Layout = "as loaded"
) -> Iterable[tuple[str, torch.nn.Parameter]]:
    """Frozen parameters, without those that `converted` replaces and those that are mapped."""
    replaced = set()
    if converted in ("prepacked", "int8", "nf4"):
        replaced = {id(linear.weight) for _, _, linear in frozen_linears(model)}
    if converted in ("int8", "nf4"):
        replaced |= {id(matrix.weight) for matrix in expert_matrices(model)}
    for name, parameter in model.named_parameters():
        whole = parameter.untyped_storage().nbytes() >= parameter.nbytes  # or it has no memory
        if (
            not parameter.requires_grad
            and parameter.nbytes >= _LEAST
            and whole
            and id(parameter) not in replaced
            and parameter.data_ptr() not in mapped
        ):
            yield name, parameter
