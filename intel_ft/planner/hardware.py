"""Compute and memory rates of a node: measured here, or from the data sheet of a CPU or GPU."""

import math
from dataclasses import dataclass, replace

import torch

from intel_ft.errors import UserError
from intel_ft.host import cpu, topology
from intel_ft.models import gemm_rate
from intel_ft.plurals import count_of
from intel_ft.training.memory import RUNTIME

_REACHED = 0.5
"""Fraction of the peak at base clock that GEMMs reach on all cores; an assumption.

16 cores of a virtual machine with AMX reached 1.4 TFLOP/s each (docs/performance.md), which is 0.68
of the peak at 2 GHz, but on a full socket more cores share the memory."""

_STREAMED = 0.8
"""Fraction of the nominal memory bandwidth that STREAM usually reaches."""


_QUICK, _THOROUGH = (5e9, 2048, 0.01), (math.inf, 8192, 0.05)
"""Of a GEMM: operations and columns of the part that is measured, and seconds for each kind."""

Rates = dict[torch.dtype, float]


@dataclass(frozen=True)
class Cpu:
    """A CPU's data sheet.

    clock: base clock in Hz. flops: operations per core and cycle by dtype; the first dtype is the
    one that model.dtype=auto selects. int8: operations per core and cycle. bandwidth: bytes per
    second over all memory channels.
    """

    cores: int
    clock: float
    flops: Rates
    int8: float
    bandwidth: float
    source: str


_UNITS = "two AVX-512 units: 64 float32 operations per core and cycle"
_AMX = (
    "AMX: 1024 bf16 and 2048 int8 operations per core and cycle (Intel, 4th Gen Xeon brief); "
    f"{_UNITS}"
)
_WITHOUT_AMX: Rates = {torch.float32: 64}
_WITH_AMX: Rates = {torch.bfloat16: 1024, torch.float32: 64}
CPUS = {
    "8380": Cpu(
        cores=40,
        clock=2.3e9,
        flops=_WITHOUT_AMX,
        int8=256,
        bandwidth=8 * 3200e6 * 8,
        source=f"ark.intel.com, Xeon Platinum 8380: 40 cores, 2.3 GHz, 8 x DDR4-3200; {_UNITS}",
    ),
    "8480+": Cpu(
        cores=56,
        clock=2.0e9,
        flops=_WITH_AMX,
        int8=2048,
        bandwidth=8 * 4800e6 * 8,
        source=f"ark.intel.com, Xeon Platinum 8480+: 56 cores, 2.0 GHz, 8 x DDR5-4800; {_AMX}",
    ),
    "8592+": Cpu(
        cores=64,
        clock=1.9e9,
        flops=_WITH_AMX,
        int8=2048,
        bandwidth=8 * 5600e6 * 8,
        source=f"ark.intel.com, Xeon Platinum 8592+: 64 cores, 1.9 GHz, 8 x DDR5-5600; {_AMX}",
    ),
    "6980P": Cpu(
        cores=128,
        clock=2.0e9,
        flops=_WITH_AMX,
        int8=2048,
        bandwidth=12 * 6400e6 * 8,
        source=f"ark.intel.com, Xeon 6980P: 128 cores, 2.0 GHz, 12 x DDR5-6400; {_AMX}",
    ),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU's data sheet.

    flops: dense operations per second by dtype; the first dtype is the one that model.dtype=auto
    selects. bandwidth: bytes per second. memory: GiB that nvidia-smi shows for the largest model.
    """

    flops: Rates
    bandwidth: float
    memory: float


def _tensor_cores(half: float, single: float) -> Rates:
    """bf16 and float16 have the same rate; float32 is without TF32, as in torch by default."""
    return {torch.bfloat16: half, torch.float16: half, torch.float32: single}


GPUS = {
    "T4": Gpu({torch.float16: 65e12, torch.float32: 8.1e12}, 320e9, 15.0),
    "L4": Gpu(_tensor_cores(121e12, 30.3e12), 300e9, 22.5),
    "A100": Gpu(_tensor_cores(312e12, 19.5e12), 2039e9, 80.0),
    "H100": Gpu(_tensor_cores(989e12, 67e12), 3350e9, 79.6),
    "H200": Gpu(_tensor_cores(989e12, 67e12), 4800e9, 140.4),
}
_REACHED_BY_GPUS = 0.68
"""Measured: the GEMMs of a 7B model on an H200, 674 TFLOP/s (docs/cuda.md). Assumed for others."""


@dataclass(frozen=True)
class Machine:
    """One node.

    Rates are for all `cores` together: GEMM operations per second in `dtype` and in int8, and bytes
    of memory per second. On a node with GPUs these are the `cores`, and `gpu_memory` is the bytes
    of each. slowdown and runtime: see planner.probe.
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
    """A node with `count` GPUs of a name in GPUS; `chosen` is model.dtype. Raises UserError."""
    if name not in GPUS:
        raise UserError(f"--gpu {name}: choose one of {', '.join(GPUS)}")
    sheet = GPUS[name]
    dtype = _dtype(name, sheet.flops, chosen)
    rate = count * sheet.flops[dtype] * _REACHED_BY_GPUS
    return Machine(
        name=f"{count} {name}",
        cores=count,
        dtype=dtype,
        gemm_rate=rate,
        int8_rate=rate,
        bandwidth=count * sheet.bandwidth,
        source=f"NVIDIA's data sheet, assuming that GEMMs reach {_REACHED_BY_GPUS:.0%} of the peak",
        gpu_memory=int(sheet.memory * 2**30),
    )


def named_cpus(name: str, sockets: int, cores: int | None, chosen: str) -> Machine:
    """A node with `sockets` CPUs of a name in CPUS, or with `cores` cores of them.

    `chosen` is model.dtype. Raises UserError for an unknown name or dtype.
    """
    if name not in CPUS:
        raise UserError(f"--cpu {name}: choose one of {', '.join(CPUS)}, or leave it out")
    sheet = CPUS[name]
    used = cores or sockets * sheet.cores
    dtype = _dtype(name, sheet.flops, chosen)
    cycles = used * sheet.clock * _REACHED
    return Machine(
        name=f"{count_of(used, 'core')} of {name}",
        cores=used,
        dtype=dtype,
        gemm_rate=cycles * sheet.flops[dtype],
        int8_rate=cycles * sheet.int8,
        bandwidth=min(1.0, used / (sheet.cores * sockets)) * sockets * sheet.bandwidth * _STREAMED,
        source=f"{sheet.source}; assuming that GEMMs reach {_REACHED:.0%} of the peak",
    )


def _dtype(name: str, rates: Rates, chosen: str) -> torch.dtype:
    if chosen == "auto":
        return next(iter(rates))
    dtype: torch.dtype = getattr(torch, chosen)
    if dtype not in rates:
        supported = ", ".join(str(other).removeprefix("torch.") for other in rates)
        raise UserError(
            f"model.dtype={chosen}: {name} has no instructions for it; it supports {supported}"
        )
    return dtype


_INT8 = ("int8", "int8_own", "int8_gradient_own")
"""The int8 GEMMs that count, in one direction or in the other."""


def this_machine(dtype: torch.dtype, cores: int | None) -> Machine:
    """This machine, or one with `cores` such cores; its rates are NaN until `measured`."""
    used = topology.read().usable
    return Machine(
        name=cpu.cpu_name()
        if cores in (None, used)
        else f"{count_of(cores, 'core')} like the {used} here",
        cores=cores or used,
        dtype=dtype,
        gemm_rate=math.nan,
        int8_rate=math.nan,
        bandwidth=math.nan,
        source="not measured",
    )


def measured(
    machine: Machine, gemms: list[gemm_rate.Gemm], *, prepacked: bool, thorough: bool = False
) -> Machine:
    """`this_machine` with its rates for a model's GEMMs.

    Each GEMM counts with its shortest time. Of large ones a part is measured, for a few seconds in
    all (a 7B model); thorough: larger parts, which may take a minute.
    """
    most_flops, columns, seconds = _THOROUGH if thorough else _QUICK
    used = topology.read().usable
    torch.set_num_threads(used)
    floats: tuple[str, ...] = ("plain", "gradient")
    if prepacked:
        floats = (*gemm_rate.FORWARD, *gemm_rate.GRADIENT)
    timings = []
    for gemm in gemms:
        part = gemm_rate.part_of(gemm, most_flops, columns)
        timing = gemm_rate.measure(part, machine.dtype, (*floats, *_INT8), seconds)
        scaled = {kind: s * gemm.flops / part.flops for kind, s in timing.seconds.items()}
        timings.append(gemm_rate.GemmTiming(gemm, scaled))
    scale = machine.cores / used
    return replace(
        machine,
        gemm_rate=scale * gemm_rate.total_rate(timings),
        int8_rate=scale * gemm_rate.total_rate(timings, _INT8[:2], _INT8[::2]),
        bandwidth=scale * gemm_rate.memory_bandwidth(0.3),
        source="measured here"
        if scale == 1
        else f"measured here on {count_of(used, 'core')}, then scaled",
    )
