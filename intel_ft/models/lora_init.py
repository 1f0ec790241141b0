"""LoRA weights that start as a part of the base's weights, which is subtracted from the base.

PiSSA (Meng et al. 2024) starts from the largest singular values, OLoRA (Buyukakyuz 2024) from the
first columns of a QR decomposition. Training then uses the base W - scale B0 A0. What is saved is
an adapter for the original base, [A; A0] and [B, -B0], of twice the rank: it merges and serves like
any other adapter, and a run can resume from it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from intel_ft.errors import UserError
from intel_ft.files import write_json
from intel_ft.models.adapter import WEIGHTS

CONFIG = "adapter_config.json"
_POWER_ITERATIONS = 8  # of svd_lowrank
_OVERSAMPLING = 8  # singular values computed beyond the rank, for accuracy


class Pair(NamedTuple):
    """One layer's A [rank, in] and B [out, rank], float32."""

    a: Tensor
    b: Tensor


Initial = dict[str, Pair]
"""What LoRA starts as, by the layer's name in the PEFT model."""


@torch.no_grad()
def from_base(model: Any, method: str) -> Initial:
    """The part of each base weight that the LoRA of `model` starts as, contiguous.

    method: pissa or olora. Raises UserError for an adapter on layers that are not linear, or of a
    higher rank than a layer.
    """
    initial = {}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if type(module) is not lora.Linear:
            raise UserError(f"method.init={method} is for linear layers, and {name} is not linear")
        weight, rank = _weight(module).float(), module.r["default"]
        if rank > min(weight.shape):
            raise UserError(
                f"method.init={method}: method.r={rank} is too high: {name} is only "
                f"{min(weight.shape)} wide"
            )
        pair = (_pissa if method == "pissa" else _olora)(weight, rank, module.scaling["default"])
        initial[name] = Pair(pair.a.contiguous(), pair.b.contiguous())
    return initial


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.base_layer.weight
    return weight.T if module.fan_in_fan_out else weight


def _pissa(weight: Tensor, rank: int, scale: float) -> Pair:
    size = min(rank + _OVERSAMPLING, *weight.shape)
    u, s, v = torch.svd_lowrank(weight, q=size, niter=_POWER_ITERATIONS)
    root = (s[:rank] / scale).sqrt()
    return Pair(root[:, None] * v[:, :rank].T, u[:, :rank] * root)


def _olora(weight: Tensor, rank: int, scale: float) -> Pair:
    q, _ = torch.linalg.qr(weight[:, :rank])  # equals the first columns of the full Q
    return Pair(q.T @ weight, q)


@torch.no_grad()
def subtract_from_base(model: Any, initial: Initial) -> None:
    """Move `initial` from the base weights to the LoRA weights, in place."""
    modules = dict(model.named_modules())
    for name, (a, b) in initial.items():
        module = modules[name]
        weight = _weight(module)
        weight.copy_(weight.float() - module.scaling["default"] * (b @ a))
        module.lora_A["default"].weight.copy_(a)
        module.lora_B["default"].weight.copy_(b)


def save_for_original(folder: Path, initial: Initial) -> None:
    """Rewrite the adapter that peft saved in `folder` for the original base."""
    weights = load_file(folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name, (a, b) in initial.items():
        weights[f"{name}.lora_A.weight"] = torch.cat((weights[f"{name}.lora_A.weight"], a))
        weights[f"{name}.lora_B.weight"] = torch.cat((weights[f"{name}.lora_B.weight"], -b), dim=1)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config | config_for_original(config))


def config_for_original(config: dict[str, Any]) -> dict[str, Any]:
    """What changes in the peft config for an adapter of twice the rank and the same scale."""
    rank, alpha = config["r"], config["lora_alpha"]
    root = rank**0.5 if config["use_rslora"] else 1.0  # rsLoRA scales by alpha / sqrt(rank)
    return {"r": 2 * rank, "lora_alpha": 2 * alpha * root, "use_rslora": False}


def load_from_original(folder: Path) -> tuple[dict[str, Tensor], Initial]:
    """The weights before `save_for_original` rewrote them, by peft's names, and its `initial`."""
    weights = load_file(folder / WEIGHTS)
    initial = {}
    for key in [key for key in weights if key.endswith(".lora_A.weight")]:
        name = key.removesuffix(".lora_A.weight")
        a, b = weights[key], weights[f"{name}.lora_B.weight"]
        rank = len(a) // 2
        initial[name] = Pair(a[rank:].clone(), -b[:, rank:])
        weights[key], weights[f"{name}.lora_B.weight"] = a[:rank].clone(), b[:, :rank].contiguous()
    return weights, initial
