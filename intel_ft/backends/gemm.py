"""How fast these cores multiply matrices and move memory, measured now; called from training.setup
and insight.

MFU divides by `model_rate`: what a step would reach that did nothing but the model's own products,
each the fastest way that oneDNN offers.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.backends import cuda
from intel_ft.backends.cpu import CPU

FORWARD = ("plain", "prepacked")
GRADIENT = ("gradient", "gradient_prepacked")


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
    """The fastest time seen for one product, in seconds, by kind: `FORWARD`, `GRADIENT`, int8."""

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


def total_rate(timings: list[Timing]) -> float:
    """All operations over all time: the FLOP-weighted harmonic mean of the products' rates."""
    flops = sum(2 * timing.product.count * timing.product.flops for timing in timings)
    seconds = sum(
        timing.product.count * (timing.best(FORWARD) + timing.best(GRADIENT)) for timing in timings
    )
    return flops / seconds


def measure(
    product: Product,
    dtype: torch.dtype,
    kinds: tuple[str, ...],
    seconds: float,
    device: torch.device = CPU,
) -> Timing:
    """Time one product in each of these kinds; a kind that torch lacks here is left out."""
    found = {}
    for kind in kinds:
        run = _runner(kind, product, dtype, device)
        if run is not None:
            found[kind] = _fastest(run, seconds, device)
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
    cuda.finish(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        cuda.finish(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _runner(
    kind: str, product: Product, dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor] | None:
    rows, inner, columns = product.rows, product.inner, product.columns
    if kind == "plain":
        x, weight = _random(rows, inner, dtype, device), _random(columns, inner, dtype, device)
        return lambda: F.linear(x, weight)
    if kind == "gradient":
        grad = _random(rows, columns, dtype, device)
        weight = _random(columns, inner, dtype, device)
        return lambda: grad @ weight
    if kind == "int8":
        x, weight = _random(rows, inner, torch.int8), _random(columns, inner, torch.int8)
        return lambda: torch._int_mm(x, weight.T)
    if device != CPU or dtype != torch.bfloat16 or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    if kind == "gradient_prepacked":
        inner, columns = columns, inner
    x, weight = _random(rows, inner, dtype), _random(columns, inner, dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


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
