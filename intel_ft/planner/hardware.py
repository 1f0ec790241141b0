"""What a node computes and moves a second: measured on these cores, or of a named CPU or GPU by its
data sheet; called from insight.plan_inputs.
"""

from dataclasses import dataclass, replace

import torch

from intel_ft.errors import UserError
from intel_ft.host import cpu, topology
from intel_ft.models import gemm_rate as gemm
from intel_ft.training.memory import RUNTIME

_REACHED = 0.5
"""Share of the peak at base clock that products reach over all cores. Assumed: 16 cores of a
virtual machine with AMX reached 1.4 TFLOP/s each (docs/performance.md), 0.68 of it at 2 GHz, and a
full socket shares its memory among more of them."""

_STREAMED = 0.8
"""Share of the memory's nominal rate that STREAM usually reaches."""


Rates = dict[torch.dtype, float]


@dataclass(frozen=True)
class Cpu:
    """A data sheet. clock: base, Hz; flops: of one core and cycle, by dtype, that which `auto`
    takes first; int8: operations of one core and cycle; bandwidth: all memory channels, bytes a
    second.
    """

    cores: int
    clock: float
    flops: Rates
    int8: float
    bandwidth: float
    source: str


_UNITS = "two AVX-512 units: 64 float32 operations a core and cycle"
_AMX = f"AMX: 1024 bf16 and 2048 int8 ones (Intel, 4th Gen Xeon brief); {_UNITS}"
_WITHOUT_AMX: Rates = {torch.float32: 64}
_WITH_AMX: Rates = {torch.bfloat16: 1024, torch.float32: 64}
CPUS = {
    "8380": Cpu(
        *(40, 2.3e9, _WITHOUT_AMX, 256, 8 * 3200e6 * 8),
        f"ark.intel.com, Xeon Platinum 8380: 40 cores, 2.3 GHz, 8 x DDR4-3200; {_UNITS}",
    ),
    "8480+": Cpu(
        *(56, 2.0e9, _WITH_AMX, 2048, 8 * 4800e6 * 8),
        f"ark.intel.com, Xeon Platinum 8480+: 56 cores, 2.0 GHz, 8 x DDR5-4800; {_AMX}",
    ),
    "8592+": Cpu(
        *(64, 1.9e9, _WITH_AMX, 2048, 8 * 5600e6 * 8),
        f"ark.intel.com, Xeon Platinum 8592+: 64 cores, 1.9 GHz, 8 x DDR5-5600; {_AMX}",
    ),
    "6980P": Cpu(
        *(128, 2.0e9, _WITH_AMX, 2048, 12 * 6400e6 * 8),
        f"ark.intel.com, Xeon 6980P: 128 cores, 2.0 GHz, 12 x DDR5-6400; {_AMX}",
    ),
}


@dataclass(frozen=True)
class Gpu:
    """A data sheet. flops: a second by dtype, dense, that which `auto` takes first; bandwidth:
    bytes a second; memory: GiB that nvidia-smi shows of the largest sold.
    """

    flops: Rates
    bandwidth: float
    memory: float


def _tensor_cores(half: float, single: float) -> Rates:
    """bf16 and float16 at one rate; float32 as torch has it, without TF32."""
    return {torch.bfloat16: half, torch.float16: half, torch.float32: single}


GPUS = {
    "T4": Gpu({torch.float16: 65e12, torch.float32: 8.1e12}, 320e9, 15.0),
    "L4": Gpu(_tensor_cores(121e12, 30.3e12), 300e9, 22.5),
    "A100": Gpu(_tensor_cores(312e12, 19.5e12), 2039e9, 80.0),
    "H100": Gpu(_tensor_cores(989e12, 67e12), 3350e9, 79.6),
    "H200": Gpu(_tensor_cores(989e12, 67e12), 4800e9, 140.4),
}
_REACHED_BY_GPUS = 0.68
"""An H200's products of a 7B model: 674 TFLOP/s (docs/cuda.md); of the others assumed."""


@dataclass(frozen=True)
class Machine:
    """One node. Rates are of all `cores` together: products in `dtype` and in int8, a second, and
    bytes of memory moved a second. Where it computes on GPUs they are the cores, and `gpu_memory`
    is what one of them has, in bytes. slowdown and runtime: see plan_probe.Probe.
    """

    name: str
    cores: int
    dtype: torch.dtype
    gemm_rate: float
    int8_rate: float
    bandwidth: float
    source: str
    gpu_memory: int | None = None
    slowdown: float = 1.0
    runtime: float = RUNTIME


def named_gpus(name: str, count: int, chosen: str) -> Machine:
    """A node with so many of a GPU in GPUS; `chosen` is model.dtype. Raises UserError."""
    if name not in GPUS:
        raise UserError(f"--gpu {name}: choose one of {', '.join(GPUS)}")
    sheet = GPUS[name]
    dtype = _dtype(name, sheet.flops, chosen)
    rate = count * sheet.flops[dtype] * _REACHED_BY_GPUS
    return Machine(
        f"{count} {name}",
        count,
        dtype,
        rate,
        rate,
        count * sheet.bandwidth,
        f"NVIDIA's data sheet; {_REACHED_BY_GPUS:.0%} of its products assumed",
        int(sheet.memory * 2**30),
    )


def named_cpus(name: str, sockets: int, cores: int | None, chosen: str) -> Machine:
    """A node with `sockets` of a CPU in CPUS, or `cores` of them; `chosen` is model.dtype. Raises
    UserError.
    """
    if name not in CPUS:
        raise UserError(f"--cpu {name}: choose one of {', '.join(CPUS)}, or leave it out")
    sheet = CPUS[name]
    used = cores or sockets * sheet.cores
    dtype = _dtype(name, sheet.flops, chosen)
    cycles = used * sheet.clock * _REACHED
    return Machine(
        f"{used} cores of {name}",
        used,
        dtype,
        cycles * sheet.flops[dtype],
        cycles * sheet.int8,
        min(1.0, used / (sheet.cores * sockets)) * sockets * sheet.bandwidth * _STREAMED,
        f"{sheet.source}; {_REACHED:.0%} of that assumed",
    )


def _dtype(name: str, rates: Rates, chosen: str) -> torch.dtype:
    if chosen == "auto":
        return next(iter(rates))
    dtype: torch.dtype = getattr(torch, chosen)
    if dtype not in rates:
        known = ", ".join(str(known).removeprefix("torch.") for known in rates)
        raise UserError(f"model.dtype={chosen}: {name} has no instructions for it, only {known}")
    return dtype


def measured_machine(
    products: list[gemm.Product], dtype: torch.dtype, cores: int | None, *, prepacked: bool
) -> Machine:
    """This machine, or one of `cores` like these: its rates over a model's products, each at the
    fastest time seen. Takes some seconds.
    """
    used = topology.read().usable
    torch.set_num_threads(used)
    floats: tuple[str, ...] = ("plain", "gradient")
    if prepacked:
        floats = (*gemm.FORWARD, *gemm.GRADIENT)
    kinds = (*floats, "int8")
    parts = [replace(p, columns=min(p.columns, 8192)) for p in products]
    timings = [gemm.measure(part, dtype, kinds, 0.05) for part in parts]
    whole = [
        gemm.Timing(p, {k: s * p.flops / part.flops for k, s in timing.seconds.items()})
        for p, part, timing in zip(products, parts, timings, strict=True)
    ]
    int8 = [gemm.Timing(t.product, dict.fromkeys(floats, t.seconds["int8"])) for t in whole]
    scale = (cores or used) / used
    return Machine(
        cpu.cpu_name() if cores in (None, used) else f"{cores} cores like these {used}",
        cores or used,
        dtype,
        scale * gemm.total_rate(whole),
        scale * gemm.total_rate(int8),
        scale * gemm.memory_bandwidth(0.3),
        "measured just now" if scale == 1 else f"measured just now on {used} cores, scaled",
    )
