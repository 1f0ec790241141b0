"""Steps that may fail for any reason or crash the process: imports, GEMMs, library calls.

`python -m intel_ft.doctor.steps STEP ...` prints the result of each step as a line of JSON.
"""

import ctypes
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intel_ft.subprocess_json import result_stream

SECONDS = 0.25  # of one measurement
_FEW_ROWS, _ROWS, _WIDTH = 256, 2048, 2048
_FAST = 0.01  # seconds; a GEMM that takes less is measured with more rows


def torch_build() -> dict[str, Any]:
    """The version of torch, the CUDA version it is built for, and the GPUs it sees."""
    import torch

    devices = []
    if torch.version.cuda is not None and torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"version": torch.__version__, "cuda": torch.version.cuda, "devices": devices}


def backend() -> list[tuple[str, str, str]]:
    """(name, value, reason) of the decisions that a run of one rank makes here.

    It also sets the number of threads, so the rates measured next are those of a run.
    """
    from intel_ft.backends import choice
    from intel_ft.config_sections import BackendConfig, ModelConfig

    name = choice.choose_by_name("auto")
    chosen = choice.select(BackendConfig(), ModelConfig(name_or_path="-"), name.value)
    decisions = (name, *chosen.decisions)
    return [(made.name, made.value, made.reason) for made in decisions]


def threads() -> int:
    """Number of threads that torch computes with."""
    import torch

    return torch.get_num_threads()


def rate(dtype: str, kinds: tuple[str, ...]) -> float:
    """Operations per second of one large GEMM in its fastest kind."""
    import torch

    from intel_ft.models import gemm_rate

    def measured(rows: int) -> tuple[float, float]:
        gemm = gemm_rate.Gemm(rows, _WIDTH, _WIDTH)
        seconds = gemm_rate.measure(gemm, getattr(torch, dtype), kinds, SECONDS).best(kinds)
        return seconds, gemm.flops / seconds

    seconds, operations_per_s = measured(_FEW_ROWS)
    return measured(_ROWS)[1] if seconds < _FAST else operations_per_s


def int8() -> float:
    """Operations per second of an int8 GEMM.

    It first runs one GEMM as the int8 base does, so that oneDNN reports the kernel. That GEMM is
    small, because oneDNN's reference implementation takes seconds for a large one.
    """
    import torch

    rows, width = 64, 256
    weight = torch.ones(width, width, dtype=torch.int8)
    torch.ops.onednn.qlinear_pointwise(
        torch.ones(rows, width, dtype=torch.uint8),
        1.0,  # the scale and zero point of the activations
        128,
        torch.ops.onednn.qlinear_prepack(weight, None),
        torch.ones(width),  # the scales and zero points of the weights
        torch.zeros(width, dtype=torch.int64),
        None,  # no bias
        1.0,  # the scale and zero point of the result, unused for bf16
        0,
        torch.bfloat16,
        "none",  # no activation function, and no arguments and algorithm of one
        [],
        "",
    )
    return rate("int8", ("int8",))


def registers() -> dict[str, tuple[str, float]]:
    """The fastest instruction for each dtype, and its operations per second from registers alone.

    A dtype that this CPU has no instruction for is left out.
    """
    import torch

    from intel_ft.kernels.gemm.register_rate import register_rate

    rates = {n: register_rate(getattr(torch, n)) for n in ("float32", "bfloat16", "int8")}
    return {name: (r.instruction, r.rate) for name, r in rates.items() if r is not None}


def bandwidth() -> float:
    """Memory bandwidth in bytes per second."""
    from intel_ft.host import cpu
    from intel_ft.models import gemm_rate

    if cpu.available_bytes() < 1.2 * gemm_rate.triad_bytes():
        raise MemoryError(f"the measurement needs {gemm_rate.triad_bytes() / 2**30:.1f} GiB")
    return gemm_rate.memory_bandwidth(SECONDS)


def openmp() -> list[str]:
    """Paths of the OpenMP runtimes that this process has loaded."""
    names = ("libgomp", "libiomp5", "libomp")
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in maps if line.count("/")}
    return sorted(path for path in paths if Path(path).name.startswith(names))


def token() -> bool:
    """Whether there is a Hugging Face token; the token itself is never printed or stored."""
    from intel_ft.hub import client

    return client.token() is not None


def devices() -> list[str]:
    """The devices that OpenVINO sees."""
    from intel_ft.optional_packages import require_openvino

    require_openvino("openvino")
    import openvino

    return list(openvino.Core().available_devices)


def oneccl() -> str | None:
    """Why oneCCL cannot be used; None if it can."""
    from intel_ft.distributed.oneccl.library import why_not_usable

    return why_not_usable()


def import_step(module: str) -> Callable[[], None]:
    """A step that imports `module`."""

    def step() -> None:
        importlib.import_module(module)

    return step


STEPS: dict[str, Callable[[], Any]] = {
    "torch": torch_build,
    "backend": backend,
    "threads": threads,
    "float32": lambda: rate("float32", ("plain",)),
    "bfloat16": lambda: rate("bfloat16", ("plain", "prepacked")),
    "int8": int8,
    "registers": registers,
    "bandwidth": bandwidth,
    "openmp": openmp,
    "token": token,
    "openvino": devices,
    "oneccl": oneccl,
}


def main(steps: list[str]) -> None:
    """Run the steps in order; the step `import NAME` imports a module."""
    with result_stream() as stream:
        for step in steps:
            run = STEPS.get(step) or import_step(step.removeprefix("import "))
            try:
                result: dict[str, Any] = {"value": run()}
            except BaseException as error:  # a broken package may even raise SystemExit
                text = " ".join(str(error).split())
                result = {"error": f"{type(error).__name__}: {text}"[:300]}
            ctypes.CDLL(None).fflush(None)  # oneDNN's report, in case a later step crashes
            stream.write(json.dumps({"step": step, **result}) + "\n")
            stream.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
