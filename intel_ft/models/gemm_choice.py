"""Which library computes the frozen GEMMs of a layout: oneDNN or our own products.

Both are measured on the model's own shapes, in both directions, when a run starts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from intel_ft.decisions import Decision
from intel_ft.layers.int8 import int8_base
from intel_ft.layers.mapped import Keep, private
from intel_ft.layers.own_products import (
    Factory,
    own_base,
    own_int8_base,
    why_no_own_products,
)
from intel_ft.layers.prepacked import prepacked_base
from intel_ft.models import gemm_rate

_ROWS = 2048  # of the measured GEMMs, at most
_FLOPS = 2.5e10  # of one of them, at most
_SECONDS = 0.01  # for one of them, at least two calls
_MARGIN = 1.1  # so much faster has oneDNN to be: noise must not decide


@dataclass(frozen=True)
class GemmChoice:
    """The factory of frozen weights, and whether its products are our own."""

    factory: Factory
    own: bool
    decision: Decision


def choose_gemms(
    shapes: Mapping[tuple[int, ...], int],
    dtype: torch.dtype,
    *,
    int8: bool,
    keep: Keep = private,
) -> GemmChoice:
    """Choose for weights of these shapes, (outputs, inputs) with their number, on this CPU.

    int8: for weights in int8, otherwise prepacked in `dtype`; keep: where the choice was made
    before, with the weights that depend on it (layers.mapped), nothing is measured.
    """
    made: list[GemmChoice] = []

    def measured() -> list[Any]:
        made.append(_measured_choice(shapes, dtype, int8=int8))
        return [made[0].own, made[0].decision.value, made[0].decision.reason]

    own, value, reason = keep("frozen GEMMs", measured)
    if made:
        return made[0]
    ours = own_int8_base(dtype) if int8 else own_base(dtype)
    oneDNN = int8_base if int8 else prepacked_base
    factory = ours[0] if own and ours is not None else oneDNN
    return _choice(factory, value, f"of the shared base: {reason}", own=own)


def _measured_choice(
    shapes: Mapping[tuple[int, ...], int], dtype: torch.dtype, *, int8: bool
) -> GemmChoice:
    oneDNN, own = (int8_base, own_int8_base(dtype)) if int8 else (prepacked_base, own_base(dtype))
    if own is None:
        return _choice(oneDNN, "oneDNN", why_no_own_products(dtype, int8=int8), own=False)
    factory, name = own
    if not shapes:
        return _choice(factory, f"intel_ft ({name})", "there is nothing to measure", own=True)
    forward, gradient = (
        (gemm_rate.INT8_FORWARD, gemm_rate.INT8_GRADIENT)
        if int8
        else (gemm_rate.FORWARD[1:], gemm_rate.GRADIENT[1:])
    )
    timings = [
        _measure(columns, inner, count, dtype, forward + gradient)
        for (columns, inner), count in shapes.items()
    ]
    theirs, ours = (
        gemm_rate.total_rate(timings, (f,), (g,)) for f, g in zip(forward, gradient, strict=True)
    )
    rates = f"{ours / 1e9:,.0f} against {theirs / 1e9:,.0f} GFLOP/s on this model's shapes"
    if ours * _MARGIN < theirs:
        return _choice(oneDNN, "oneDNN", f"intel_ft ({name}) is slower here: {rates}", own=False)
    reason = f"{ours / theirs:.1f} times oneDNN's rate, measured just now: {rates}"
    return _choice(factory, f"intel_ft ({name})", reason, own=True)


def _choice(factory: Any, value: str, reason: str, *, own: bool) -> GemmChoice:
    return GemmChoice(factory, own, Decision("frozen GEMMs", value, reason))


def _measure(
    columns: int, inner: int, count: int, dtype: torch.dtype, kinds: tuple[str, ...]
) -> gemm_rate.GemmTiming:
    gemm = gemm_rate.Gemm(_ROWS, inner, columns, count)
    part = gemm_rate.part_of(gemm, _FLOPS)
    return gemm_rate.measure(part, dtype, kinds, _SECONDS)
