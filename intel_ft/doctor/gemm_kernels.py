"""Facts of what was executed: the kernel that oneDNN ran for each dtype and the rate it reached;
called from insight.doctor.examine.
"""

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
    """One matrix product. Rates are 10^9 operations a second; `expected` of the best instructions
    that the CPU advertises. `kernel` is None where oneDNN ran none (MKL does float32).
    """

    dtype: str
    kernel: str | None
    rate: float | None
    expected: float | None
    error: str | None
    signal: str | None


@dataclass(frozen=True)
class ExecutedKernels:
    """`onednn` is its version, `isa` the best that it sees, `bandwidth` GB/s, `throttled` how often
    cores were slowed down meanwhile.
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
    """The facts from the steps' outcomes and from what oneDNN reported (ONEDNN_VERBOSE=1)."""
    threads = outcomes["threads"].value
    products = []
    for dtype in DTYPES:
        outcome = outcomes[dtype]
        expected = instructions.expected(dtype, isa.advertised, machine, threads or machine.usable)
        products.append(
            ExecutedGemm(
                dtype,
                kernel_name(verbose, dtype),
                None if outcome.value is None else outcome.value / 1e9,
                None if expected is None else expected / 1e9,
                outcome.error,
                outcome.signal,
            )
        )
    moved = outcomes["bandwidth"].value
    return ExecutedKernels(
        onednn=_first(r"info,oneDNN (v[\w.]+)", verbose),
        isa=_first(r"info,cpu,isa:(.+)", verbose),
        threads=threads,
        products=tuple(products),
        bandwidth=None if moved is None else moved / 1e9,
        bandwidth_error=outcomes["bandwidth"].error,
        throttled=throttled,
    )


def kernel_name(verbose: str, dtype: str) -> str | None:
    """The implementation of the first product of this dtype that ONEDNN_VERBOSE=1 reports.

    A line is `onednn_verbose,v1,primitive,exec,cpu,<primitive>,<implementation>,<propagation>,
    src:<dtype>:...` (oneDNN's developer guide, "Verbose Mode"; `src_<dtype>` in older ones).
    """
    source = _SOURCES[dtype]
    return _first(rf"exec,cpu,(?:matmul|inner_product),([^,]+),[^,]*,src[:_]{source}[: ]", verbose)


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1].strip() if found else None
