"""Whether a measured rate can be true: no GEMM is faster than its instruction on registers alone.

Called from the benchmarks, which print it, and from `bench.tune`, which measures again.
"""

from typing import Any

_FASTER = 1.1  # a step's GEMMs and their own measurement differ by a few percent


def why_implausible(run: dict[str, Any]) -> str | None:
    """Why the result of bench.worker cannot be true, or None."""
    registers = run.get("register_gflops")
    if registers and run["gemm_gflops"] > registers:
        return above_registers("GEMMs", run["gemm_gflops"], registers)
    if registers and run.get("utilization", 0.0) > 1:
        return above_registers("whole steps", run["utilization"] * registers, registers)
    if run.get("mfu", 0.0) > _FASTER:
        return f"a step took {1 / run['mfu']:.2f} of the time that its GEMMs take alone"
    return None


def above_registers(what: str, rate: float, registers: float) -> str:
    """That a rate is above the one of registers alone; both in GFLOP/s."""
    return f"{what} at {rate:,.0f} GFLOP/s, above {registers:,.0f} from registers alone"
