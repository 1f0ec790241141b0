"""Compiles step.cpp for this CPU, once, and loads it; called from kernels.ops and training.setup.

The library goes to the user's cache folder under a name made of everything that it depends on, so
a second process only loads it, and another CPU, compiler or torch gets its own.
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

import torch

from intel_ft.backends.cpu import cpu_flags, cpu_name
from intel_ft.decisions import Decision

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("step.cpp")
DISABLE = "INTEL_FT_NO_KERNELS"
"""Set in the environment, this keeps to the torch operations."""

# Without -nostartfiles, GCC before 13 adds to a -ffast-math library code that switches denormal
# numbers off for the whole process when it is loaded.
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
    """The loaded library, or None and why not."""

    library: ctypes.CDLL | None
    reason: str

    @property
    def decision(self) -> Decision:
        """What a run says about them."""
        return Decision("step kernels", "compiled" if self.library else "torch's", self.reason)


@cache
def kernels() -> Kernels:
    """Compile (or find) and load the library; never raises, a machine without a compiler trains
    with torch's operations.
    """
    if os.environ.get(DISABLE):
        return Kernels(None, f"{DISABLE} is set")
    if not {"avx512_bf16", "amx_bf16"} & cpu_flags():
        return Kernels(None, "this CPU has no bf16 instructions")
    compilers = [os.environ.get("CXX"), *map(shutil.which, ("c++", "g++", "clang++"))]
    why_not = "no C++ compiler on the path (install g++ for a faster step)"
    for compiler in dict.fromkeys(filter(None, compilers)):
        try:
            path = _library(compiler)
            return Kernels(ctypes.CDLL(str(path)), f"compiled for this CPU by {compiler}")
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            why_not = f"{compiler} failed: {output.strip().splitlines()[-1]}"
    return Kernels(None, why_not)


def _library(compiler: str) -> Path:
    command = shlex.split(compiler)  # CXX may hold arguments
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    cpu = (cpu_name(), *sorted(cpu_flags()))
    parts = (SOURCE.read_text(), version.stdout, str(torch.__version__), *cpu, *FLAGS)
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = _cache_folder() / f"step-{name}.so"
    if not path.exists():
        logger.info("compiling the step's kernels for this CPU, once")
        path.parent.mkdir(parents=True, exist_ok=True)
        # torch's own libraries, and its OpenMP: a second one would bring a second pool of threads.
        folder = Path(torch.__file__).parent / "lib"
        openmp = sorted([*folder.glob("libgomp*"), *folder.glob("libiomp5*")])
        libraries = [str(folder / "libtorch_cpu.so"), *map(str, openmp[:1])]
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            built = Path(aside) / path.name
            link = ["-Wl,--as-needed", *libraries, f"-Wl,-rpath,{folder}"]
            subprocess.run(
                [*command, *FLAGS, str(SOURCE), "-o", str(built), *link],
                capture_output=True,
                text=True,
                check=True,
                timeout=300,
            )
            built.rename(path)
    return path


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "intel_ft"
