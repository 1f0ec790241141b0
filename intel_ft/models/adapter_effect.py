"""Which adapted modules an adapter does not change, asked at the end of a run.

A module without effect got no gradient (the model reads its weight past the adapter, or no token
met the expert), or the run took no step with a learning rate.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor

from intel_ft.models.lora_init import Initial
from intel_ft.models.targets import kind_of


@torch.no_grad()
def without_effect(model: Any, initial: Initial | None = None) -> list[str]:
    """The kinds of modules whose adapter changes nothing, each with how many of them.

    initial: what was subtracted from the base, where the adapter may have started as that. For
    experts, a line says how many of them are unchanged where only some are.
    """
    counts: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or "default" not in module.lora_A:
            continue
        kind = kind_of(name)
        if isinstance(module, ParamWrapper):
            kind = f"{kind}.{module.parameter_name}".removesuffix(".weight")
        unchanged = _unchanged(module, (initial or {}).get(name))
        totals = counts.setdefault(kind, [0, 0, 0, 0])
        totals[0] += int(unchanged.all())
        totals[1] += 1
        if not unchanged.all():
            totals[2] += int(unchanged.sum())
        totals[3] += len(unchanged)
    lines = []
    for kind, (modules, of, experts, of_experts) in counts.items():
        if modules:
            lines.append(f"{kind} ({modules} of {of} modules)")
        if experts:
            lines.append(f"{kind} ({experts} of {of_experts} experts)")
    return lines


def _unchanged(module: Any, start: Any) -> Tensor:
    """Boolean, of the module or of each of its experts."""
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    experts = getattr(module, "num_experts", 1)
    if experts > 1:
        return _product_norm(a.view(experts, -1, a.shape[1]), b.view(len(b), -1, experts)) == 0
    as_it_began = start is not None and torch.equal(a.cpu(), start.a)
    as_it_began = as_it_began and torch.equal(b.cpu(), start.b)
    return (_product_norm(a[None], b[..., None]) == 0) | as_it_began


def _product_norm(a: Tensor, b: Tensor) -> Tensor:
    """The Frobenius norm [experts] of each B A, for a [experts, rank, in], b [out, rank, experts].

    ||B A||^2 = sum((A A^T) * (B^T B)), without the product itself.
    """
    inner, outer = a.double() @ a.double().mT, torch.einsum("ore,ose->ers", b.double(), b.double())
    return (inner * outer).sum((1, 2)).clamp(min=0).sqrt()
