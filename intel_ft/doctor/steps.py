"""The steps that may kill a process or fail for any reason: run as a program, which answers each
with a line of JSON; started by insight.doctor.step_runner.
"""

import ctypes
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intel_ft.subprocess_json import answer

SECONDS = 0.25  # for one rate
_FEW_ROWS, _ROWS, _WIDTH = 256, 2048, 2048
_BRIEF = 0.01  # seconds; a product that takes less is measured with more rows


def torch_build() -> dict[str, Any]:
    """Which torch this is, what it computes with, and the NVIDIA devices that it sees."""
    import torch

    devices = []
    if torch.version.cuda is not None and torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"version": torch.__version__, "cuda": torch.version.cuda, "devices": devices}


def backend() -> list[tuple[str, str, str]]:
    """(name, value, reason) of what a run by one rank decides here; sets the threads, so that the
    rates that follow are those of a run.
    """
    from intel_ft.backends import choice
    from intel_ft.config import BackendConfig, ModelConfig

    name = choice.choose_by_name("auto")
    chosen = choice.select(BackendConfig(), ModelConfig(name_or_path="-"), name.value)
    decisions = (name, *chosen.decisions)
    return [(made.name, made.value, made.reason) for made in decisions]


def threads() -> int:
    """Threads that torch computes with."""
    import torch

    return torch.get_num_threads()


def rate(dtype: str, kinds: tuple[str, ...]) -> float:
    """Operations a second of one large product, of its best kind."""
    import torch

    from intel_ft.models import gemm_rate

    def measured(rows: int) -> tuple[float, float]:
        product = gemm_rate.Product(rows, _WIDTH, _WIDTH)
        seconds = gemm_rate.measure(product, getattr(torch, dtype), kinds, SECONDS).best(kinds)
        return seconds, product.flops / seconds

    seconds, found = measured(_FEW_ROWS)
    return measured(_ROWS)[1] if seconds < _BRIEF else found


def int8() -> float:
    """Operations a second; also one product as the int8 base does it, which names its kernel.

    It is small, since oneDNN's reference implementation would take seconds for a large one.
    """
    import torch

    rows, width = 64, 256
    weight = torch.ones(width, width, dtype=torch.int8)
    torch.ops.onednn.qlinear_pointwise(
        *(torch.ones(rows, width, dtype=torch.uint8), 1.0, 128),
        *(torch.ops.onednn.qlinear_prepack(weight, None), torch.ones(width)),
        *(torch.zeros(width, dtype=torch.int64), None, 1.0, 0, torch.bfloat16, "none", [], ""),
    )
    return rate("int8", ("int8",))


def bandwidth() -> float:
    """Bytes of memory moved a second."""
    from intel_ft.host import cpu
    from intel_ft.models import gemm_rate

    if cpu.available_bytes() < 1.2 * gemm_rate.triad_bytes():
        raise MemoryError(f"it takes {gemm_rate.triad_bytes() / 2**30:.1f} GiB to measure")
    return gemm_rate.memory_bandwidth(SECONDS)


def openmp() -> list[str]:
    """The OpenMP runtimes that this process has loaded by now."""
    names = ("libgomp", "libiomp5", "libomp")
    maps = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[5] for line in maps if line.count("/")}
    return sorted(path for path in paths if Path(path).name.startswith(names))


def token() -> bool:
    """Whether there is a token for the Hub; its text goes nowhere."""
    from intel_ft.hub.client import token as found

    return found() is not None


def devices() -> list[str]:
    """OpenVINO's devices."""
    from intel_ft.optional_packages import require_openvino

    require_openvino("openvino")
    import openvino

    return list(openvino.Core().available_devices)


def oneccl() -> str | None:
    """Why oneCCL cannot be used; None where it can."""
    from intel_ft.distributed.oneccl.library import why_not_usable

    return why_not_usable()


def imported(module: str) -> Callable[[], None]:
    """A step that imports a module."""

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
    "bandwidth": bandwidth,
    "openmp": openmp,
    "token": token,
    "openvino": devices,
    "oneccl": oneccl,
}


def main(steps: list[str]) -> None:
    """Take the steps in order; `import NAME` imports a module."""
    with answer() as stream:
        for step in steps:
            run = STEPS.get(step) or imported(step.removeprefix("import "))
            try:
                said: dict[str, Any] = {"value": run()}
            except BaseException as error:  # a broken package may leave by SystemExit
                text = " ".join(str(error).split())
                said = {"error": f"{type(error).__name__}: {text}"[:300]}
            ctypes.CDLL(None).fflush(None)  # oneDNN's report, before a later step may crash
            stream.write(json.dumps({"step": step, **said}) + "\n")
            stream.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
