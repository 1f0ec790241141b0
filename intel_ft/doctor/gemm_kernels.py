"""Facts of the executed GEMMs: the kernel that oneDNN ran for each dtype, and its rate."""

import re
from dataclasses import dataclass

from intel_ft.doctor import instructions
from intel_ft.doctor.host import Host
from intel_ft.doctor.instructions import Instructions
from intel_ft.doctor.step_runner import Outcome

DTYPES = ("float32", "bfloat16", "int8")
_SOURCES = {"float32": "f32", "bfloat16": "bf16", "int8": "[su]8"}


@dataclass(frozen=True)
class ExecutedGemm:
    """The GEMM of one dtype.

    Rates are in 10^9 operations per second; `expected` is for the best instructions that the CPU
    advertises, `registers` what the fastest `instruction` for the dtype reaches on registers alone.
    `kernel` is None if oneDNN ran none (MKL computes float32).
    """

    dtype: str
    kernel: str | None
    rate: float | None
    expected: float | None
    error: str | None
    signal: str | None
    instruction: str | None = None
    registers: float | None = None


@dataclass(frozen=True)
class ExecutedKernels:
    """What was measured: GEMMs and memory bandwidth (GB/s).

    `onednn` is oneDNN's version, `isa` the best instruction set that it detects, `throttled` how
    often cores were throttled during the measurement.
    """

    onednn: str | None
    isa: str | None
    threads: int | None
    products: tuple[ExecutedGemm, ...]
    bandwidth: float | None
    bandwidth_error: str | None
    throttled: int | None


def read(
    outcomes: dict[str, Outcome],
    verbose: str,
    machine: Host,
    isa: Instructions,
    throttled: int | None,
) -> ExecutedKernels:
    """The facts, from the outcomes of the steps and from oneDNN's report (ONEDNN_VERBOSE=1)."""
    threads = outcomes["threads"].value
    gemms = []
    measured = outcomes.get("registers")
    registers = (None if measured is None else measured.value) or {}
    for dtype in DTYPES:
        outcome = outcomes[dtype]
        instruction, limit = registers.get(dtype) or (None, None)
        expected = instructions.expected(dtype, isa.advertised, machine, threads or machine.usable)
        gemms.append(
            ExecutedGemm(
                dtype=dtype,
                kernel=kernel_name(verbose, dtype),
                rate=None if outcome.value is None else outcome.value / 1e9,
                expected=None if expected is None else expected / 1e9,
                error=outcome.error,
                signal=outcome.signal,
                instruction=instruction,
                registers=None if limit is None else limit / 1e9,
            )
        )
    bandwidth = outcomes["bandwidth"].value
    return ExecutedKernels(
        onednn=_first(r"info,oneDNN (v[\w.]+)", verbose),
        isa=_first(r"info,cpu,isa:(.+)", verbose),
        threads=threads,
        products=tuple(gemms),
        bandwidth=None if bandwidth is None else bandwidth / 1e9,
        bandwidth_error=outcomes["bandwidth"].error,
        throttled=throttled,
    )


def kernel_name(verbose: str, dtype: str) -> str | None:
    """The implementation of the first GEMM of this dtype that ONEDNN_VERBOSE=1 reports.

    A line is `onednn_verbose,v1,primitive,exec,cpu,<primitive>,<implementation>,<propagation>,
    src:<dtype>:...` (oneDNN's developer guide, "Verbose Mode"; `src_<dtype>` in older versions).
    """
    source = _SOURCES[dtype]
    return _first(rf"exec,cpu,(?:matmul|inner_product),([^,]+),[^,]*,src[:_]{source}[: ]", verbose)


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1].strip() if match else None
