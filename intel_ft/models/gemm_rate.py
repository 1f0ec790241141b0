"""How fast this machine computes GEMMs and moves memory, measured now.

MFU divides by `model_rate`: the rate of a step that consisted of the model's GEMMs only, each the
fastest way that this machine offers: oneDNN's, plain or prepacked (models.prepacked), or our own
(models.own_products).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from intel_ft.host import devices
from intel_ft.host.allocator import release_freed_memory
from intel_ft.host.devices import CPU
from intel_ft.layers.int8 import can_int8, int8_base
from intel_ft.layers.own_products import Factory, own_base, own_int8_base
from intel_ft.layers.prepacked import WIDEST, can_prepack, prepack

if TYPE_CHECKING:  # it imports peft, which a rate does not need
    from intel_ft.layers.lora_linear import FrozenWeight

FORWARD = ("plain", "prepacked", "own")
GRADIENT = ("gradient", "gradient_prepacked", "gradient_own")
INT8_FORWARD = ("int8_prepacked", "int8_own")
INT8_GRADIENT = ("int8_gradient_prepacked", "int8_gradient_own")
"""The GEMMs of frozen int8 weights, with the rounding of activations or gradients to 8 bits."""


@dataclass(frozen=True)
class Gemm:
    """Activations [rows, inner] times a frozen weight [columns, inner], transposed.

    The input gradient is [rows, columns] times the same weight. A model has `count` of them.
    """

    rows: int
    inner: int
    columns: int
    count: int = 1

    @property
    def flops(self) -> float:
        """Floating-point operations of one such GEMM in one direction."""
        return 2.0 * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class GemmTiming:
    """The fastest time measured for one GEMM, in seconds, by kind.

    Kinds: `FORWARD`, `GRADIENT`, int8, `INT8_FORWARD`, `INT8_GRADIENT`.
    """

    gemm: Gemm
    seconds: dict[str, float]

    def best(self, kinds: tuple[str, ...]) -> float:
        """The shortest time among those of these kinds that this machine has."""
        return min(self.seconds[kind] for kind in kinds if kind in self.seconds)


def linear_gemms(model: Any, rows: int, supervised_share: float) -> list[Gemm]:
    """The GEMMs of a packed row of `rows` tokens.

    Linear layers compute every token, each expert of a mixture an equal share of them, the head the
    supervised share. `model` may have LoRA, and may be on the meta device.
    """
    from intel_ft.layers.mixture import expert_matrices
    from intel_ft.models.flops import active_experts  # import peft, which a rate does not need
    from intel_ft.models.targets import is_linear, own_layer

    head = own_layer(model.get_output_embeddings())
    shapes: Counter[tuple[int, int]] = Counter()
    for name, module in model.named_modules():
        if module is head or not is_linear(module) or ".lora_" in name:
            continue
        shape = tuple(module.weight.shape)  # [columns, inner]; in GPT-2's Conv1D [inner, columns]
        columns, inner = shape if isinstance(module, torch.nn.Linear) else shape[::-1]
        shapes[inner, columns] += 1
    gemms = [Gemm(rows, inner, columns, n) for (inner, columns), n in shapes.items()]
    experts: Counter[tuple[int, int, int]] = Counter()
    for matrix in expert_matrices(model):
        count, columns, inner = matrix.weight.shape
        if getattr(matrix.module, "is_transposed", False):
            columns, inner = inner, columns
        experts[max(1, rows * active_experts(model.config) // count), inner, columns] += count
    gemms += [Gemm(*shape, n) for shape, n in experts.items()]
    if head is None:  # a reward model's is one column
        return gemms
    columns, inner = head.weight.shape
    return [*gemms, Gemm(max(1, round(rows * supervised_share)), inner, columns)]


def model_rate(
    gemms: list[Gemm],
    dtype: torch.dtype,
    seconds: float,
    most_flops: float | None = None,
    device: torch.device = CPU,
    most_columns: int = 8192,
) -> float:
    """FLOP/s over all GEMMs in both directions, each of the fastest kind.

    It measures for about `seconds` per GEMM and kind. With `most_flops`, a GEMM with more
    operations is measured on a part of it (`part_of`), which takes less time.
    """
    timings = []
    for gemm in gemms:
        part = gemm if most_flops is None else part_of(gemm, most_flops, most_columns)
        timing = measure(part, dtype, (*FORWARD, *GRADIENT), seconds, device)
        larger = gemm.flops / part.flops
        scaled = {kind: value * larger for kind, value in timing.seconds.items()}
        timings.append(GemmTiming(gemm, scaled))
        if device == CPU:  # all ranks of a host measure at once, each with its own matrices
            release_freed_memory()
    return total_rate(timings)


def total_rate(
    timings: list[GemmTiming],
    forward: tuple[str, ...] = FORWARD,
    gradient: tuple[str, ...] = GRADIENT,
) -> float:
    """All operations divided by all time: the FLOP-weighted harmonic mean of the GEMMs' rates."""
    flops = sum(2 * timing.gemm.count * timing.gemm.flops for timing in timings)
    seconds = sum(
        timing.gemm.count * (timing.best(forward) + timing.best(gradient)) for timing in timings
    )
    return flops / seconds


def measure(
    gemm: Gemm,
    dtype: torch.dtype,
    kinds: tuple[str, ...],
    seconds: float,
    device: torch.device = CPU,
) -> GemmTiming:
    """Time one GEMM in each of these kinds; a kind that this machine lacks is left out."""
    fastest = {}
    for kind in kinds:
        runs = _implementations(kind, gemm, dtype, device)
        if times := [_fastest(run, seconds, device) for run in runs]:
            fastest[kind] = min(times)
    return GemmTiming(gemm, fastest)


def memory_bandwidth(seconds: float = 0.5) -> float:
    """Bytes per second of a = b + 2 c (STREAM's triad, McCalpin 1995).

    The buffers are larger than any cache; two reads and one write count.
    """
    elements = triad_bytes() // 12
    a, b, c = (torch.ones(elements) for _ in range(3))
    return 3 * 4 * elements / _fastest(lambda: torch.add(b, c, alpha=2.0, out=a), seconds)


def triad_bytes() -> int:
    """Bytes of memory that `memory_bandwidth` needs."""
    return 3 * max(256 * 2**20, 2 * _last_level_cache())


def part_of(gemm: Gemm, most_flops: float, most_columns: int = 8192) -> Gemm:
    """A smaller GEMM that should run at the same rate: with fewer columns first, then rows."""
    part = replace(gemm, columns=min(gemm.columns, most_columns))
    rows = most_flops / (2.0 * part.inner * part.columns)
    return replace(part, rows=int(min(part.rows, max(256, rows))))


def _fastest(run: Callable[[], object], seconds: float, device: torch.device = CPU) -> float:
    """The shortest of at least two runs after a warm-up; slower ones are other programs' load."""
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


def _implementations(
    kind: str, gemm: Gemm, dtype: torch.dtype, device: torch.device
) -> Iterator[Callable[[], Tensor]]:
    """The implementations of a GEMM of one kind, one after another to save memory."""
    rows, inner, columns = gemm.rows, gemm.inner, gemm.columns
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
        yield from _int8(kind, gemm, dtype)
    elif kind.endswith("own"):
        if device == CPU and (own := own_base(dtype)) is not None:
            base = own[0](_random(columns, inner, dtype), None)
            yield from _uses(base, gemm, dtype, forward=kind in FORWARD)
    elif device == CPU and can_prepack(dtype):
        yield from _prepacked(rows, *((inner, columns) if kind in FORWARD else (columns, inner)))


def _prepacked(rows: int, inner: int, columns: int) -> Iterator[Callable[[], Tensor]]:
    """Prepacked as a whole and, if it is wide, also in parts, as layers.prepacked does it."""
    x = _random(rows, inner, torch.bfloat16)
    weight = _random(columns, inner, torch.bfloat16)
    for widest in sorted({min(columns, WIDEST), columns}):
        yield partial(prepack(weight, widest, rows).linear, x, None, None)


def _int8(kind: str, gemm: Gemm, dtype: torch.dtype) -> Iterator[Callable[[], Tensor]]:
    factory: Factory | None = int8_base if can_int8() else None
    if kind.endswith("own"):
        own = own_int8_base(dtype)
        factory = None if own is None else own[0]
    if factory is not None:
        base = factory(_random(gemm.columns, gemm.inner, dtype), None)
        yield from _uses(base, gemm, dtype, forward=kind in INT8_FORWARD)


def _uses(
    base: "FrozenWeight", gemm: Gemm, dtype: torch.dtype, *, forward: bool
) -> Iterator[Callable[[], Tensor]]:
    """A product of a base as a step takes it, with whatever it does to its activations."""
    x = _random(gemm.rows, gemm.inner if forward else gemm.columns, dtype)
    if forward:  # x[:]: a base lays out the same x only once
        yield lambda: base.linear(x[:], None)
    else:
        yield lambda: base.input_gradient(x, None)


def _random(rows: int, columns: int, dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """A random matrix [rows, columns], repeated from a block: drawing it all would take longer."""
    block = torch.randn(2**16)
    block = (block * 30).clamp(-127, 127) if dtype == torch.int8 else block
    block = block.to(device, dtype)
    size = rows * columns
    return block.repeat(-(-size // len(block)))[:size].view(rows, columns)


def _last_level_cache() -> int:
    """Bytes of the first core's largest cache; 0 if the kernel does not report it."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes)
