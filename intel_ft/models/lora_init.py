"""LoRA that begins as a part of the base's own weights, which is taken out of the base; called from
training.setup and models.trained.

PiSSA (Meng et al. 2024) begins with the largest singular values, OLoRA (Buyukakyuz 2024) with the
first columns of a QR decomposition. The base that is trained on is then W - scale B0 A0. An adapter
for the original base is [A; A0] and [B, -B0], of twice the rank: that is what is saved, so that it
merges and serves like any other, and what a run needs to resume.
"""

import json
from collections.abc import Callable
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
_ROUNDS = 8  # of svd_lowrank's power iteration
_SPARE = 8  # singular values found beyond those wanted, for accuracy


class Pair(NamedTuple):
    """One layer's A [rank, in] and B [out, rank], float32."""

    a: Tensor
    b: Tensor


Initial = dict[str, Pair]  # by the layer's name in the PEFT model


@torch.no_grad()
def from_base(model: Any, how: str, agree: Callable[[Tensor], Tensor]) -> Initial:
    """The part of each base weight that `model`'s fresh LoRA is to begin as; `how` is pissa or
    olora, `agree` makes a tensor the same on all ranks, in place.

    Raises UserError for an adapter on other layers than linear ones, or of a higher rank than they.
    """
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if type(module) is not lora.Linear:
            raise UserError(f"method.init={how} is for linear layers, which {name} is not")
        weight, rank = _weight(module).float(), module.r["default"]
        if rank > min(weight.shape):
            raise UserError(
                f"method.init={how}: method.r={rank}, but {name} is only {min(weight.shape)} wide"
            )
        pair = (_pissa if how == "pissa" else _olora)(weight, rank, module.scaling["default"])
        found[name] = Pair(*(agree(part.contiguous()) for part in pair))
    return found


def _weight(module: Any) -> Tensor:
    weight: Tensor = module.base_layer.weight
    return weight.T if module.fan_in_fan_out else weight


def _pissa(weight: Tensor, rank: int, scale: float) -> Pair:
    wanted = min(rank + _SPARE, *weight.shape)
    u, s, v = torch.svd_lowrank(weight, q=wanted, niter=_ROUNDS)
    root = (s[:rank] / scale).sqrt()
    return Pair(root[:, None] * v[:, :rank].T, u[:, :rank] * root)


def _olora(weight: Tensor, rank: int, scale: float) -> Pair:
    q, _ = torch.linalg.qr(weight[:, :rank])  # the first columns of the whole matrix's Q
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
    """Turn the adapter that peft wrote into `folder` into one for the original base."""
    weights = load_file(folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name, (a, b) in initial.items():
        weights[f"{name}.lora_A.weight"] = torch.cat((weights[f"{name}.lora_A.weight"], a))
        weights[f"{name}.lora_B.weight"] = torch.cat((weights[f"{name}.lora_B.weight"], -b), dim=1)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config | config_for_original(config))


def config_for_original(config: dict[str, Any]) -> dict[str, Any]:
    """What an adapter of twice the rank and the same scale has other in its peft config."""
    rank, alpha = config["r"], config["lora_alpha"]
    root = rank**0.5 if config["use_rslora"] else 1.0  # of rsLoRA's scale, alpha over it
    return {"r": 2 * rank, "lora_alpha": 2 * alpha * root, "use_rslora": False}


def load_from_original(folder: Path) -> tuple[dict[str, Tensor], Initial]:
    """The weights that `save_for_original` found, as peft names them, and its `initial`."""
    weights = load_file(folder / WEIGHTS)
    initial = {}
    for key in [key for key in weights if key.endswith(".lora_A.weight")]:
        name = key.removesuffix(".lora_A.weight")
        a, b = weights[key], weights[f"{name}.lora_B.weight"]
        rank = len(a) // 2
        initial[name] = Pair(a[rank:].clone(), -b[:, rank:])
        weights[key], weights[f"{name}.lora_B.weight"] = a[:rank].clone(), b[:, :rank].contiguous()
    return weights, initial
