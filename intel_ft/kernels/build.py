"""Compiles the C++ kernels for this CPU, once, and loads them.

The library goes to the user's cache folder, named by a hash of everything that it depends on: a
second process only loads it, and another CPU, compiler or torch version gets its own.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from intel_ft.decisions import Decision
from intel_ft.files import user_cache
from intel_ft.host.cpu import bf16_limit, cpu_flags, cpu_name

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(_FOLDER.glob("*.cpp")))
HEADERS = tuple(sorted(_FOLDER.rglob("*.h")))

DISABLE = "INTEL_FT_NO_KERNELS"
"""The environment variable that, when set, disables all kernels; torch operations run instead."""

_TORCH = "torch operations"

# Without -nostartfiles, GCC before 13 adds startup code to a -ffast-math library that switches
# denormal numbers off for the whole process when the library is loaded.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-ffast-math",
    "-fno-finite-math-only",
    "-nostartfiles",
    "-fopenmp",
    "-fPIC",
    "-shared",
)


@dataclass(frozen=True)
class Kernels:
    """The loaded library and how it was compiled, or None and why there is none."""

    library: ctypes.CDLL | None
    reason: str

    @property
    def decision(self) -> Decision:
        """The decision that a run on CPUs reports."""
        return _decision("compiled" if self.library else _TORCH, self.reason)


def _decision(value: str, reason: str) -> Decision:
    return Decision("step kernels", value, reason)


def gpu_kernels() -> Decision:
    """The decision that a run on a GPU reports; see kernels.inductor."""
    if os.environ.get(DISABLE):
        return _decision(_TORCH, f"{DISABLE} is set")
    return _decision("generated", "by torch.compile, each at its first call")


@cache
def kernels() -> Kernels:
    """The library, compiled now or taken from the cache.

    Never raises: a machine without a compiler trains with torch operations.
    """
    if os.environ.get(DISABLE):
        return Kernels(None, f"{DISABLE} is set")
    if not {"avx512_bf16", "amx_bf16"} & cpu_flags():
        return Kernels(None, "this CPU has no bf16 instructions")
    if (limit := bf16_limit()) is not None:  # torch's brgemm would abort the process
        return Kernels(None, limit)
    return compile_library("step", SOURCES)


def compile_library(name: str, sources: tuple[Path, ...]) -> Kernels:
    """Compile `sources` for this CPU or take them from the cache; the first compiler that works.

    Never raises. All headers below kernels/ count as read.
    """
    compilers = [os.environ.get("CXX"), *map(shutil.which, ("c++", "g++", "clang++"))]
    why_not = "no C++ compiler on the PATH (install g++ for faster steps)"
    for compiler in dict.fromkeys(filter(None, compilers)):
        try:
            path = _library(compiler, name, sources)
            return Kernels(ctypes.CDLL(str(path)), f"compiled for this CPU by {compiler}")
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            why_not = f"{compiler} failed: {output.strip().splitlines()[-1]}"
    return Kernels(None, why_not)


def c_value(value: Any) -> Any:
    """An argument of a kernel: tensors by address, numbers as float or int64, others as they are.

    Raises ValueError for a tensor that is not contiguous.
    """
    if isinstance(value, torch.Tensor):
        if not value.is_contiguous():
            raise ValueError(f"kernels need contiguous tensors, not strides {value.stride()}")
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_int64(value) if isinstance(value, int) else value


def _library(compiler: str, name: str, sources: tuple[Path, ...]) -> Path:
    command = shlex.split(compiler)  # CXX may hold arguments
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    cpu = (cpu_name(), *sorted(cpu_flags()))
    code = [path.read_text() for path in (*sources, *HEADERS)]
    parts = (*code, version.stdout, str(torch.__version__), *cpu, *FLAGS)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = user_cache(f"{name}-{digest}.so")
    if not path.exists():
        logger.info("compiling the kernels for this CPU; later runs load them from the cache")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Link torch's own OpenMP: a second OpenMP library would bring a second pool of threads.
        folder = Path(torch.__file__).parent / "lib"
        openmp = sorted([*folder.glob("libgomp*"), *folder.glob("libiomp5*")])
        libraries = [str(folder / "libtorch_cpu.so"), *map(str, openmp[:1])]
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            built = Path(aside) / path.name
            link = ["-Wl,--as-needed", *libraries, f"-Wl,-rpath,{folder}"]
            subprocess.run(
                [*command, *FLAGS, *map(str, sources), "-o", str(built), *link],
                capture_output=True,
                text=True,
                check=True,
                timeout=300,
            )
            built.rename(path)
    return path
