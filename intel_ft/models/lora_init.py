"""LoRA on a base whose weights were changed by a low-rank part: W - scale B0 A0.

PiSSA (Meng et al. 2024) starts from the largest singular values, OLoRA (Buyukakyuz 2024) from the
first columns of a QR decomposition, and that part is subtracted from the base. A run that starts
from a merged adapter (model.adapter_mode) adds that adapter to the base, so its B0 is negative.
What is saved is an adapter for the original base, [A; A0] and [B, -B0], of the sum of both ranks:
it merges and serves like any other adapter, and a run can resume from it.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from intel_ft.artifacts.ir_weights import CompressedTensor, dequantize
from intel_ft.errors import UserError
from intel_ft.files import write_json
from intel_ft.models.adapter import WEIGHTS

CONFIG = "adapter_config.json"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_POWER_ITERATIONS = 8  # of svd_lowrank
_OVERSAMPLING = 8  # singular values computed beyond the rank, for accuracy


class Pair(NamedTuple):
    """One layer's A [rank, in] and B [out, rank], float32."""

    a: Tensor
    b: Tensor


Initial = dict[str, Pair]
"""What was subtracted from the base, by the layer's name in the PEFT model; all of one rank."""


@torch.no_grad()
def from_base(model: Any, method: str) -> Initial:
    """The part of each base weight that the LoRA of `model` starts as, contiguous.

    method: pissa or olora. Raises UserError for an adapter on layers that are not linear, or of a
    higher rank than a layer.
    """
    split = _pissa if method == "pissa" else _olora
    return {
        name: split(_weight(module).float(), module.r["default"], module.scaling["default"])
        for name, module in _linear_lora(model, method)
    }


@torch.no_grad()
def from_rounding(model: Any, weights: Mapping[str, CompressedTensor]) -> Initial:
    """LoRA that starts as the largest part of what `weights`, of an IR of the base, rounded away.

    With weights that stay as they are, this is LoftQ (Li et al. 2023) with one iteration. Raises
    UserError as `from_base` does; layers that the IR did not compress start as usual.
    """
    initial = {}
    for name, module in _linear_lora(model, "loftq"):
        tensor = weights.get(name.removeprefix("base_model.model."))
        if tensor is not None:
            error = _weight(module).float() - torch.from_numpy(dequantize(tensor))
            initial[name] = _pissa(error, module.r["default"], module.scaling["default"])
    return initial


def _linear_lora(model: Any, method: str) -> Iterator[tuple[str, Any]]:
    """The layers with LoRA by name; UserError for one that `method` cannot start."""
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if type(module) is not lora.Linear:
            raise UserError(f"method.init={method} is for linear layers, and {name} is not linear")
        width, rank = min(_weight(module).shape), module.r["default"]
        if rank > width:
            raise UserError(
                f"method.init={method}: method.r={rank} is too high: {name} is only {width} wide"
            )
        yield name, module


def scale_of(config: LoraConfig) -> float:
    """What LoRA of this config multiplies B A by."""
    return float(config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r))


def _weight(module: Any) -> Tensor:
    """The base weight [out, in] of a linear layer with or without LoRA."""
    linear = module.base_layer if isinstance(module, BaseTunerLayer) else module
    weight: Tensor = linear.weight
    return weight.T if isinstance(linear, Conv1D) else weight


def _pissa(weight: Tensor, rank: int, scale: float) -> Pair:
    size = min(rank + _OVERSAMPLING, *weight.shape)
    u, s, v = torch.svd_lowrank(weight, q=size, niter=_POWER_ITERATIONS)
    root = (s[:rank] / scale).sqrt()
    return Pair((root[:, None] * v[:, :rank].T).contiguous(), (u[:, :rank] * root).contiguous())


def _olora(weight: Tensor, rank: int, scale: float) -> Pair:
    q, _ = torch.linalg.qr(weight[:, :rank])  # equals the first columns of the full Q
    return Pair((q.T @ weight).contiguous(), q.contiguous())


@torch.no_grad()
def subtract_from_base(model: Any, initial: Initial) -> None:
    """Subtract `initial`, with the scale of the model's LoRA, from the base weights, in place."""
    modules, scale = dict(model.named_modules()), scale_of(model.peft_config["default"])
    for name, (a, b) in initial.items():
        weight = _weight(modules[name])
        weight.copy_(weight.float() - scale * (b @ a).to(weight.device))


@torch.no_grad()
def start_as(model: Any, initial: Initial) -> None:
    """Set the LoRA weights to `initial`."""
    modules = dict(model.named_modules())
    for name, (a, b) in initial.items():
        modules[name].lora_A["default"].weight.copy_(a)
        modules[name].lora_B["default"].weight.copy_(b)


def save_for_original(folder: Path, initial: Initial) -> None:
    """Rewrite the adapter that peft saved in `folder` for the original base."""
    weights = load_file(folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    names = {key.removesuffix(_A) for key in weights if key.endswith(_A)}
    rank, extra = config["r"], _rank_of(initial)
    for name in names | initial.keys():
        a0, b0 = initial.get(name, (None, None))
        a, b = weights.get(name + _A), weights.get(name + _B)
        if a0 is None or b0 is None:
            assert a is not None and b is not None
            a0, b0 = a.new_zeros(extra, a.shape[1]), b.new_zeros(len(b), extra)
        elif a is None or b is None:  # the merged adapter has layers that the new one has not
            a, b = a0.new_zeros(rank, a0.shape[1]), b0.new_zeros(len(b0), rank)
        weights[name + _A] = torch.cat((a, a0))
        weights[name + _B] = torch.cat((b, -b0), dim=1)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config | config_for_original(config, initial, names))


def config_for_original(
    config: Mapping[str, Any], initial: Initial, names: Collection[str] = ()
) -> dict[str, Any]:
    """What changes in the peft config for an adapter with `initial`, of the same scale.

    names: the layers that the new adapter has, by which layers of `initial` alone are found.
    """
    rank, alpha, total = config["r"], config["lora_alpha"], config["r"] + _rank_of(initial)
    root = rank**0.5 if config["use_rslora"] else 1.0  # rsLoRA scales by alpha / sqrt(rank)
    changed = {"r": total, "lora_alpha": alpha * (total / rank) * root, "use_rslora": False}
    if names and not initial.keys() <= set(names):
        both = initial.keys() | set(names)
        changed["target_modules"] = sorted(n.removeprefix("base_model.model.") for n in both)
    return changed


def load_from_original(folder: Path, rank: int) -> tuple[dict[str, Tensor], Initial]:
    """The weights before `save_for_original` rewrote them, by peft's names, and its `initial`.

    rank: of the adapter that trains.
    """
    weights = load_file(folder / WEIGHTS)
    initial = {}
    for key in [key for key in weights if key.endswith(_A)]:
        name = key.removesuffix(_A)
        a, b = weights[key], weights[name + _B]
        initial[name] = Pair(a[rank:].clone(), -b[:, rank:])
        weights[key], weights[name + _B] = a[:rank].clone(), b[:, :rank].contiguous()
    return weights, initial


def _rank_of(initial: Initial) -> int:
    return len(next(iter(initial.values())).a)
