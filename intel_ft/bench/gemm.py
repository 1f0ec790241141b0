"""`bench gemm`: GEMM rates for a workload's shapes, and memory bandwidth, of this machine."""

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch

from intel_ft.backends import cpu
from intel_ft.bench import machine
from intel_ft.bench.workloads import Workload, shape_model, synthetic_examples
from intel_ft.config_sections import BackendConfig, ModelConfig
from intel_ft.kernels.gemm.register_rate import RegisterRate, instruction_of, register_rate
from intel_ft.layers.int8 import can_int8
from intel_ft.models import gemm_rate

_BF16_GEMM = """
import sys, torch
rows, inner, columns = map(int, sys.argv[1:])
x = torch.zeros(rows, inner, dtype=torch.bfloat16)
torch.nn.functional.linear(x, torch.zeros(columns, inner, dtype=torch.bfloat16))
"""


def bench_gemm(workload: Workload, threads: int | None, seconds: float) -> dict[str, Any]:
    """Measure each of the workload's GEMMs in each kind, about `seconds` per measurement.

    Returns {workload, products, gemm_gflops, int8_gops, int8_prepacked_gops, registers, own,
    unreliable, memory_gb_per_s, onednn_kernel, machine}. A rate is None if this CPU does not
    support the kind. `registers` has the limit of each dtype: the instruction and its rate on
    registers alone, in 10^9 operations per second, measured in between, and that of AMX's
    instructions back to back; a product's `register_share` is the share of the former that its
    fastest kind reaches. `own` has for each dtype what our own products reach over the whole set:
    their rate over that of oneDNN's fastest forms in each direction and in both, and their shares
    of the two register rates.
    `unreliable` names the rates above the registers' own, which cannot be true.
    """
    backend = cpu.select(
        BackendConfig(threads=threads or "auto"),
        ModelConfig(name_or_path=workload.name, dtype="bfloat16"),
    )
    share = float(synthetic_examples(workload, 0).supervised.mean())
    gemms = gemm_rate.linear_gemms(shape_model(workload, 1), workload.row_tokens, share)
    int8_base = (gemm_rate.INT8_FORWARD, gemm_rate.INT8_GRADIENT)
    kinds = (
        *gemm_rate.FORWARD,
        *gemm_rate.GRADIENT,
        "int8",
        *gemm_rate.INT8_FORWARD,
        *gemm_rate.INT8_GRADIENT,
    )
    limits, back_to_back = [_register_rates()], [_register_rates(back_to_back=True)]
    timings = []
    for gemm in gemms:  # the limit again after each: on shared hosts it changes, too
        timings.append(gemm_rate.measure(gemm, torch.bfloat16, kinds, seconds))
        limits.append(_register_rates())
        back_to_back.append(_register_rates(back_to_back=True))
    registers = _registers(limits, back_to_back)
    own = _own_rates(timings, registers)
    products = [
        {
            "layer": "head" if timing is timings[-1] else "linear",
            **vars(timing.gemm),
            "gflops": {kind: _gigaflops(timing, kind) for kind in kinds},
            "register_share": _shares(timing, around),
        }
        for timing, around in zip(timings, pairwise(limits), strict=True)
    ]
    int8_operations = sum(gemm.count * gemm.flops for gemm in gemms)
    int8_seconds = sum(timing.gemm.count * timing.seconds["int8"] for timing in timings)
    return {
        "workload": workload.name,
        "products": products,
        "gemm_gflops": gemm_rate.total_rate(timings) / 1e9,
        "int8_gops": int8_operations / int8_seconds / 1e9,
        "int8_prepacked_gops": (
            gemm_rate.total_rate(timings, *int8_base) / 1e9 if can_int8() else None
        ),
        "registers": registers,
        "own": own,
        "unreliable": _above_registers(products, own),
        "memory_gb_per_s": gemm_rate.memory_bandwidth() / 1e9,
        "onednn_kernel": onednn_kernel(gemms[0]),
        "machine": machine.describe(backend.threads),
    }


def _above_registers(products: list[dict[str, Any]], own: dict[str, dict[str, float]]) -> list[str]:
    shares = [
        (f"{one['rows']}x{one['inner']}x{one['columns']}, {dtype}", share)
        for one in products
        for dtype, share in one["register_share"].items()
    ]
    shares += [(f"all, {dtype}", one.get("register_share", 0.0)) for dtype, one in own.items()]
    return [f"{name}: {share:.2f} of the register rate" for name, share in shares if share > 1]


def _register_rates(*, back_to_back: bool = False) -> dict[str, RegisterRate]:
    """The limit of each dtype; with `back_to_back` that of AMX's instructions only."""
    rates = {}
    for name in ("bfloat16", "int8", "float32"):
        dtype = getattr(torch, name)
        if back_to_back and not (instruction_of(dtype) or "").startswith("tdp"):
            continue
        if (rate := register_rate(dtype, back_to_back=back_to_back)) is not None:
            rates[name] = rate
    return rates


def _registers(
    limits: list[dict[str, RegisterRate]], back_to_back: list[dict[str, RegisterRate]]
) -> dict[str, dict[str, Any]]:
    registers: dict[str, dict[str, Any]] = {}
    for dtype, limit in limits[0].items():
        registers[dtype] = {"instruction": limit.instruction, "gflops": _median(limits, dtype)}
        if dtype in back_to_back[0]:
            registers[dtype]["back_to_back_gflops"] = _median(back_to_back, dtype)
    return registers


_OWN_AND_ONEDNN = {
    "bfloat16": (
        (gemm_rate.FORWARD[2:], gemm_rate.FORWARD[:2]),
        (gemm_rate.GRADIENT[2:], gemm_rate.GRADIENT[:2]),
    ),
    "int8": (
        (gemm_rate.INT8_FORWARD[1:], gemm_rate.INT8_FORWARD[:1]),
        (gemm_rate.INT8_GRADIENT[1:], gemm_rate.INT8_GRADIENT[:1]),
    ),
}
"""Our kinds and oneDNN's, forward and input gradient, with rounding and packing of activations."""


def _own_rates(
    timings: list[gemm_rate.GemmTiming], registers: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """By dtype; without those whose GEMMs are not all measured in ours and oneDNN's kinds."""
    found = {}
    for dtype, directions in _OWN_AND_ONEDNN.items():
        kinds = [kind for pair in directions for kind in pair]
        if not all(any(k in timing.seconds for k in some) for timing in timings for some in kinds):
            continue
        forward, forward_onednn, gradient, gradient_onednn = (
            sum(timing.gemm.count * timing.best(some) for timing in timings) for some in kinds
        )
        own = forward + gradient
        rate = gemm_rate.total_rate(timings, directions[0][0], directions[1][0]) / 1e9
        found[dtype] = {
            "gflops": rate,
            "over_onednn": (forward_onednn + gradient_onednn) / own,
            "over_onednn_forward": forward_onednn / forward,
            "over_onednn_gradient": gradient_onednn / gradient,
        }
        limit = registers.get(dtype, {})
        for share, name in (
            ("register_share", "gflops"),
            ("back_to_back_share", "back_to_back_gflops"),
        ):
            if name in limit:
                found[dtype][share] = rate / limit[name]
    return found


def _median(limits: Iterable[dict[str, RegisterRate]], dtype: str) -> float:
    return statistics.median(rates[dtype].rate for rates in limits) / 1e9


def _shares(
    timing: gemm_rate.GemmTiming, limits: tuple[dict[str, RegisterRate], ...]
) -> dict[str, float]:
    """The best rates over the limits just before and after them, by dtype."""
    directions = {
        "bfloat16": (gemm_rate.FORWARD, gemm_rate.GRADIENT),
        "int8": (gemm_rate.INT8_FORWARD, gemm_rate.INT8_GRADIENT),
    }
    shares = {}
    for dtype, kinds in directions.items():
        known = all(any(kind in timing.seconds for kind in kinds_) for kinds_ in kinds)
        if known and dtype in limits[0]:
            rate = gemm_rate.total_rate([timing], *kinds) / 1e9
            shares[dtype] = rate / _median(limits, dtype)
    return shares


def _gigaflops(timing: gemm_rate.GemmTiming, kind: str) -> float | None:
    seconds = timing.seconds.get(kind)
    return None if seconds is None else timing.gemm.flops / seconds / 1e9


def onednn_kernel(gemm: gemm_rate.Gemm) -> str | None:
    """The kernel that oneDNN runs a bf16 GEMM with, such as brg_matmul:avx10_1_512_amx.

    A separate process runs the GEMM and oneDNN reports its kernel; None if it reports none.
    """
    shape = [str(size) for size in (gemm.rows, gemm.inner, gemm.columns)]
    result = subprocess.run(
        [sys.executable, "-c", _BF16_GEMM, *shape],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return kernel_name(result.stdout)


def kernel_name(verbose: str) -> str | None:
    """The implementation in the first matmul or inner product that ONEDNN_VERBOSE=1 reports.

    A line is `onednn_verbose,v1,primitive,exec,cpu,<primitive>,<implementation>,...` (oneDNN's
    developer guide, "Verbose Mode").
    """
    match = re.search(
        r"^onednn_verbose,.*?exec,cpu,(?:matmul|inner_product),([^,]+),", verbose, re.M
    )
    return match[1] if match else None
