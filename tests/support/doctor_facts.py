"""Machines and packages for tests of the doctor, in the form in which it reads them."""

from pathlib import Path

from support.sys_trees import GIB, write

from intel_ft.doctor import gemm_kernels, host, instructions
from intel_ft.doctor.step_runner import Outcome

ALL_CPUS = set(range(1024))
XEON = "avx2 fma avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16"


def write_processor(
    root: Path, flags: str = XEON, vendor: str = "GenuineIntel", family: int = 6, ghz: float = 2.0
) -> None:
    """Write /proc/cpuinfo of one CPU; the number of CPUs comes from the tree below /sys."""
    write(
        root / "proc/cpuinfo",
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\n"
        f"model name\t: Some CPU\ncpu MHz\t\t: {ghz * 1000:.3f}\nflags\t\t: {flags}",
    )


def write_memory(root: Path, total: float, available: float) -> None:
    """Write /proc/meminfo; the arguments are in GiB."""
    write(
        root / "proc/meminfo",
        f"MemTotal:       {int(total * GIB)} kB\nMemAvailable:   {int(available * GIB)} kB",
    )


def read_host(root: Path) -> host.Host:
    return host.read(root, ALL_CPUS)


def verbose(**kernels: str) -> str:
    """What oneDNN reports for a GEMM of each dtype (bf16=..., u8=...)."""
    head = "onednn_verbose,v1,info,oneDNN v3.12.0 (commit 80af)\nonednn_verbose,v1,info,cpu,isa:X\n"
    line = "onednn_verbose,v1,primitive,exec,cpu,matmul,{},undef,src:{}::blocked:ab::f0 wei,,,1x1,1"
    return head + "\n".join(line.format(kernel, dtype) for dtype, kernel in kernels.items())


def executed(
    machine: host.Host,
    isa: instructions.Instructions,
    report: str = "",
    throttled: int | None = None,
    **gigaops: float | Outcome,
) -> gemm_kernels.ExecutedKernels:
    """The facts from a rate in GOP/s, or an outcome, of each dtype."""
    rates = {"float32": 100.0, "bfloat16": 400.0, "int8": 800.0} | gigaops
    outcomes = {
        name: rate if isinstance(rate, Outcome) else Outcome(rate * 1e9)
        for name, rate in rates.items()
    }
    outcomes |= {"threads": Outcome(machine.usable), "bandwidth": Outcome(20e9)}
    return gemm_kernels.read(outcomes, report, machine, isa, throttled)


def write_distribution(folder: Path, name: str, version: str, code: str | None = None) -> None:
    """Write an installed distribution, and with `code` a package of that name."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}")
    if code is not None:
        write(folder / name.replace("-", "_") / "__init__.py", code)
