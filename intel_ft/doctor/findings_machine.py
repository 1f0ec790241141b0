"""Findings about the machine: limits, memory, clock, disks, and instructions that do not run or run
slowly; pure functions of facts, called from insight.doctor.examine.
"""

from collections.abc import Iterator

from intel_ft.doctor import instructions
from intel_ft.doctor.findings import Finding
from intel_ft.doctor.gemm_kernels import ExecutedGemm, ExecutedKernels
from intel_ft.doctor.host import Host
from intel_ft.doctor.instructions import Instructions
from intel_ft.doctor.step_runner import NOT_TRIED

_LEAST_MEMORY, _LITTLE_MEMORY = 1.0, 4.0  # GiB: torch and Transformers alone take 0.6
_LEAST_DISK, _LITTLE_DISK = 1.0, 10.0
_LITTLE_SHARED = 0.25  # GiB; containers get 64 MiB
_SLOW = 0.5  # of the rate to expect


def of_limits(host: Host) -> Iterator[Finding]:
    """Cores, memory and disk that a run may use."""
    if host.usable < host.machine_cores:
        limit = (
            f"{host.quota_by} allows {host.quota:g}"
            if host.quota is not None and host.quota < host.cores
            else "this process is bound to these"
        )
        yield Finding(
            "note",
            f"{host.usable} of {host.machine_cores} cores: {limit}",
            "if that is not meant, raise the container's or job's CPU limit",
        )
    if host.quota is not None and host.quota < 1:
        yield Finding(
            "warning",
            f"the control group allows {host.quota:g} cores, less than one",
            "give the container or job at least one core",
        )
    if host.memory_limit is not None and host.memory_limit < host.memory:
        yield Finding(
            "note",
            f"{host.memory_limit:.1f} of {host.memory:.1f} GiB of memory: the control group's",
            "beyond it the kernel kills the run: check with `intel-ft plan CONFIG`",
        )
    if host.available < _LITTLE_MEMORY:
        yield Finding(
            "error" if host.available < _LEAST_MEMORY else "warning",
            f"{host.available:.1f} GiB of memory can still be taken",
            "end other programs or raise the limit; `intel-ft plan CONFIG` says what a run needs",
        )
    for folder, free in host.disk.items():
        if free is None:
            yield Finding(
                "error",
                f"this user may not enter {folder}",
                "set HF_HOME (models) to a folder of this user's, or start elsewhere",
            )
        elif free < _LITTLE_DISK:
            yield Finding(
                "error" if free < _LEAST_DISK else "warning",
                f"{free:.1f} GiB free for {folder}",
                "free space, or set output.directory (runs) and HF_HOME (models) to another disk",
            )
    if host.shared_memory is not None and host.shared_memory < _LITTLE_SHARED:
        yield Finding(
            "warning",
            f"/dev/shm has {host.shared_memory * 1024:.0f} MiB: ranks of one host need it",
            "start the container with --shm-size=1g or more",
        )


def of_load_and_clock(host: Host, executed: ExecutedKernels) -> Iterator[Finding]:
    """Who else computes here, and at which speed."""
    if host.busy:
        yield Finding(
            "note",
            f"the machine has {host.machine_cores} cores and a load of {host.load:.1f}: others "
            "compute here, so the rates are not its best",
            "measure again when it is idle",
        )
    if executed.throttled:
        yield Finding(
            "warning",
            f"cores were slowed down for heat or power {executed.throttled} times while measuring",
            "check cooling and the power limit",
        )
    elif host.clock.throttled:
        yield Finding(
            "note",
            f"since its start the machine slowed cores down {host.clock.throttled} times for heat",
            "check cooling if a long run slows down",
        )
    allowed, highest = host.clock.allowed, host.clock.highest
    if allowed is not None and highest is not None and allowed < 0.95 * highest:
        yield Finding(
            "warning",
            f"the clock is capped at {allowed:.1f} of {highest:.1f} GHz",
            f"cpupower frequency-set --max {highest:.1f}GHz",
        )
    # intel_pstate's and amd-pstate-epp's "powersave" goes up to the highest clock under load.
    fixed_low = not (host.clock.driver or "").endswith(("pstate", "pstate-epp"))
    if host.clock.governor == "powersave" and fixed_low:
        yield Finding(
            "warning",
            "the clock's governor is powersave: cores stay at their lowest clock",
            "cpupower frequency-set --governor performance",
        )


def of_execution(isa: Instructions, executed: ExecutedKernels, *, busy: bool) -> Iterator[Finding]:
    """Products that died, ran without the instructions that the CPU advertises, or were slow."""
    fine = []
    for product in executed.products:
        if product.error is not None:
            if product.error != NOT_TRIED.error:
                yield _failed(product)
        elif unused := _unused(product, isa):
            yield unused
        else:
            fine.append(product)
    yield from _slow(fine, busy=busy)
    rates = {product.dtype: product.rate for product in executed.products}
    single, half = rates["float32"], rates["bfloat16"]
    if single and half and half < single:
        emulated = instructions.best("bfloat16", isa.advertised) is None
        seen = f"bf16 products are slower than fp32 here: {half:,.0f} to {single:,.0f} GFLOP/s"
        if emulated:
            yield Finding("note", f"{seen}: this CPU has no instruction for them", "")
        else:
            yield Finding("warning", seen, "model.dtype=float32, as long as that is so")


def _failed(product: ExecutedGemm) -> Finding:
    if product.signal == "SIGILL":
        return Finding(
            "error",
            f"a {product.dtype} product ended in an illegal-instruction trap: the CPU, virtual "
            "machine or container advertises what it does not let run",
            "have the host's owner expose these instructions, or hide them from oneDNN: "
            "export ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 (or AVX512_CORE, or AVX2)",
        )
    do = "free memory and try again" if product.signal == "SIGKILL" else "reinstall torch"
    return Finding("error", f"a {product.dtype} product failed: {product.error}", do)


def _unused(product: ExecutedGemm, isa: Instructions) -> Finding | None:
    flag = instructions.best(product.dtype, isa.advertised)
    if flag is None or product.dtype == "float32":  # which MKL does, and reports nothing
        return None
    if product.kernel is not None and instructions.uses(product.kernel, flag):
        return None
    ran = product.kernel or "nothing"
    seen = f"{flag} is advertised but not used: for {product.dtype} oneDNN ran {ran}"
    if flag.startswith("amx") and isa.tiles != "granted":
        return Finding(
            "warning",
            f"{seen}; the kernel does not permit AMX tiles ({isa.tiles})",
            "use Linux 5.16 or newer, and a container whose seccomp profile allows arch_prctl",
        )
    for name, value in isa.limits.items():
        if name != "ATEN_CPU_CAPABILITY":  # which is torch's own, not oneDNN's
            return Finding("warning", f"{seen}; {name}={value} forbids more", f"unset {name}")
    return Finding("warning", seen, "pip install --upgrade torch: newer ones bring newer oneDNN")


def _slow(products: list[ExecutedGemm], *, busy: bool) -> Iterator[Finding]:
    slow = [
        f"{product.dtype} {product.rate:,.0f} of {product.expected:,.0f} G/s expected"
        for product in products
        if product.rate and product.expected and product.rate < _SLOW * product.expected
    ]
    if slow and busy:
        seen = f"products are slow while others compute here: {', '.join(slow)}"
        yield Finding("note", seen, "measure again when the machine is idle")
    elif slow:
        yield Finding(
            "warning",
            f"products are slow: {', '.join(slow)}",
            "try more ranks with fewer threads (`intel-ft launch CONFIG --tune`); a virtual "
            "machine may have fewer real cores, or a lower clock, than it shows",
        )
