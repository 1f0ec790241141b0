"""How fast these cores multiply matrices and move memory, measured now; called from training.setup
and insight.

MFU divides by `model_rate`: what a step would reach that did nothing but the model's own products,
each the fastest way that oneDNN offers or models.prepacked makes of it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.host import devices
from intel_ft.host.devices import CPU
from intel_ft.kernels import ops
from intel_ft.models.int8 import can_int8, int8_base
from intel_ft.models.prepacked import WIDEST, can_prepack, prepack

FORWARD = ("plain", "prepacked")
GRADIENT = ("gradient", "gradient_prepacked")
INT8_FORWARD = ("int8_prepacked",)
INT8_GRADIENT = ("int8_gradient_prepacked",)
"""The products of models.int8, with what rounds activations or gradients to 8 bits."""


@dataclass(frozen=True)
class Product:
    """Activations [rows, inner] times a frozen weight [columns, inner], `count` times in a row of
    tokens; its input gradient is [rows, columns] times the same weight.
    """

    rows: int
    inner: int
    columns: int
    count: int = 1

    @property
    def flops(self) -> float:
        """Floating-point operations of one such product in one direction."""
        return 2.0 * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Timing:
    """The fastest time seen for one product, in seconds, by kind: `FORWARD`, `GRADIENT`, int8,
    `INT8_FORWARD`, `INT8_GRADIENT`.
    """

    product: Product
    seconds: dict[str, float]

    def best(self, kinds: tuple[str, ...]) -> float:
        """The shortest time of these kinds, those that this machine has."""
        return min(self.seconds[kind] for kind in kinds if kind in self.seconds)


def linear_products(model: Any, rows: int, supervised_share: float) -> list[Product]:
    """The products of one row of `rows` tokens: each linear layer's at every token, the head's at
    the supervised share of them. `model` may carry LoRA, and may be on `meta`.
    """
    from intel_ft.models.adapter import is_linear  # which imports peft: not needed for a rate

    head = model.get_output_embeddings()
    shapes: Counter[tuple[int, int]] = Counter()
    for name, module in model.named_modules():
        if module is head or not is_linear(module) or ".lora_" in name:
            continue
        shape = tuple(module.weight.shape)  # [columns, inner], GPT-2's Conv1D the other way round
        columns, inner = shape if isinstance(module, torch.nn.Linear) else shape[::-1]
        shapes[inner, columns] += 1
    products = [Product(rows, inner, columns, n) for (inner, columns), n in shapes.items()]
    columns, inner = head.weight.shape
    return [*products, Product(max(1, round(rows * supervised_share)), inner, columns)]


def model_rate(
    products: list[Product],
    dtype: torch.dtype,
    seconds: float,
    most_flops: float | None = None,
    device: torch.device = CPU,
) -> float:
    """FLOP/s over all products, both directions, each at its best; about `seconds` a product and
    kind. With `most_flops` large products are measured on a part of them, to be done soon.
    """
    timings = []
    for product in products:
        part = product if most_flops is None else _part(product, most_flops)
        timing = measure(part, dtype, (*FORWARD, *GRADIENT), seconds, device)
        larger = product.flops / part.flops
        scaled = {kind: value * larger for kind, value in timing.seconds.items()}
        timings.append(Timing(product, scaled))
    return total_rate(timings)


def total_rate(
    timings: list[Timing],
    forward: tuple[str, ...] = FORWARD,
    gradient: tuple[str, ...] = GRADIENT,
) -> float:
    """All operations over all time: the FLOP-weighted harmonic mean of the products' rates."""
    flops = sum(2 * timing.product.count * timing.product.flops for timing in timings)
    seconds = sum(
        timing.product.count * (timing.best(forward) + timing.best(gradient)) for timing in timings
    )
    return flops / seconds


def measure(
    product: Product,
    dtype: torch.dtype,
    kinds: tuple[str, ...],
    seconds: float,
    device: torch.device = CPU,
) -> Timing:
    """Time one product in each of these kinds; a kind that this machine lacks is left out."""
    found = {}
    for kind in kinds:
        times = [_fastest(run, seconds, device) for run in _ways(kind, product, dtype, device)]
        if times:
            found[kind] = min(times)
    return Timing(product, found)


def memory_bandwidth(seconds: float = 0.5) -> float:
    """Bytes a second of a = b + 2 c over buffers beyond any cache (STREAM's triad, McCalpin 1995),
    counting two reads and one write.
    """
    elements = triad_bytes() // 12
    a, b, c = (torch.ones(elements) for _ in range(3))
    return 3 * 4 * elements / _fastest(lambda: torch.add(b, c, alpha=2.0, out=a), seconds)


def triad_bytes() -> int:
    """Memory that `memory_bandwidth` takes."""
    return 3 * max(256 * 2**20, 2 * _last_level_cache())


def _part(product: Product, most_flops: float) -> Product:
    """A smaller product that should run at the same rate: fewer columns first, then rows."""
    part = replace(product, columns=min(product.columns, 16384))
    rows = int(most_flops / (2.0 * part.inner * part.columns))
    return replace(part, rows=min(part.rows, max(256, rows)))


def _fastest(run: Callable[[], object], seconds: float, device: torch.device = CPU) -> float:
    """The shortest of at least two runs after a first one: anything slower is another's load."""
    run()
    devices.synchronize(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        devices.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _ways(
    kind: str, product: Product, dtype: torch.dtype, device: torch.device
) -> Iterator[Callable[[], Tensor]]:
    """The ways to do a product of one kind, one after another."""
    rows, inner, columns = product.rows, product.inner, product.columns
    if kind == "plain":
        x, weight = _random(rows, inner, dtype, device), _random(columns, inner, dtype, device)
        yield lambda: F.linear(x, weight)
    elif kind == "gradient":
        grad = _random(rows, columns, dtype, device)
        weight = _random(columns, inner, dtype, device)
        yield lambda: grad @ weight
    elif kind == "int8":
        x, weight = _random(rows, inner, torch.int8), _random(columns, inner, torch.int8)
        yield lambda: torch._int_mm(x, weight.T)
    elif kind in (*INT8_FORWARD, *INT8_GRADIENT):
        yield from _int8(kind in INT8_FORWARD, product, dtype)
    elif device == CPU and can_prepack(dtype):
        yield from _prepacked(rows, *((inner, columns) if kind in FORWARD else (columns, inner)))


def _prepacked(rows: int, inner: int, columns: int) -> Iterator[Callable[[], Tensor]]:
    """In one layout, and where that is wide also in parts, as models.prepacked multiplies."""
    x = _random(rows, inner, torch.bfloat16)
    weight = _random(columns, inner, torch.bfloat16)
    for widest in sorted({min(columns, WIDEST), columns}):
        yield partial(prepack(weight, widest, rows).linear, x, None, None)


def _int8(forward: bool, product: Product, dtype: torch.dtype) -> Iterator[Callable[[], Tensor]]:
    if not can_int8():
        return
    x = _random(product.rows, product.inner if forward else product.columns, dtype)
    base = int8_base(_random(product.columns, product.inner, dtype), None)
    if forward:  # not `base.linear`, which would quantize the same x only once
        yield lambda: base.forward.linear(ops.quantize(x), None, dtype)
    else:
        yield lambda: base.input_gradient(x, None)


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """[rows, columns] of noise that repeats, since drawing it costs more than a product."""
    block = torch.randn(2**16)
    block = (block * 30).clamp(-127, 127) if dtype == torch.int8 else block
    block = block.to(device, dtype)
    needed = rows * columns
    return block.repeat(-(-needed // len(block)))[:needed].view(rows, columns)


def _last_level_cache() -> int:
    """Bytes of the first core's largest cache; 0 where the kernel does not say."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes)
