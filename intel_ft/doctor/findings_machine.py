"""Findings about the machine: limits, memory, clock, disks, unused instructions, slow GEMMs.

All of them are pure functions of facts.
"""

from collections.abc import Iterator

from intel_ft.doctor import instructions
from intel_ft.doctor.findings import Finding
from intel_ft.doctor.gemm_kernels import ExecutedGemm, ExecutedKernels
from intel_ft.doctor.host import Host
from intel_ft.doctor.instructions import Instructions
from intel_ft.doctor.step_runner import NOT_TRIED
from intel_ft.plurals import count_of

# Below the first value it is an error, below the second a warning.
_MEMORY_ERROR, _MEMORY_WARNING = 1.0, 4.0  # GiB; torch and Transformers alone take 0.6
_DISK_ERROR, _DISK_WARNING = 1.0, 10.0  # GiB
_SHARED_MEMORY_WARNING = 0.25  # GiB; Docker's default is 64 MiB
_SLOW = 0.5  # fraction of the expected rate


def of_limits(host: Host) -> Iterator[Finding]:
    """Cores, memory and disk space that a run may use."""
    if host.usable < host.machine_cores:
        limit = (
            f"{host.quota_by} allows {host.quota:g}"
            if host.quota is not None and host.quota < host.cores
            else "this process is bound to these cores"
        )
        yield Finding(
            "note",
            f"{host.usable} of {count_of(host.machine_cores, 'core')} can be used: {limit}",
            "if this is not intended, raise the CPU limit of the container or job",
        )
    if host.quota is not None and host.quota < 1:
        yield Finding(
            "warning",
            f"the control group allows only {count_of(host.quota, 'core')}",
            "give the container or job at least one core",
        )
    if host.memory_limit is not None and host.memory_limit < host.memory:
        yield Finding(
            "note",
            f"the control group allows {host.memory_limit:.1f} of {host.memory:.1f} GiB of memory",
            "Linux kills a run that needs more: check with `intel-ft plan CONFIG`",
        )
    if host.available < _MEMORY_WARNING:
        yield Finding(
            "error" if host.available < _MEMORY_ERROR else "warning",
            f"only {host.available:.1f} GiB of memory are available",
            "end other programs or raise the limit; `intel-ft plan CONFIG` predicts what a run "
            "needs",
        )
    for folder, free in host.disk.items():
        if free is None:
            yield Finding(
                "error",
                f"this user has no access to {folder}",
                "set HF_HOME (models) to a folder that this user owns, or start in another folder",
            )
        elif free < _DISK_WARNING:
            yield Finding(
                "error" if free < _DISK_ERROR else "warning",
                f"only {free:.1f} GiB of disk space are free for {folder}",
                "free some, or set output.directory (runs) and HF_HOME (models) to another disk",
            )
    if host.shared_memory is not None and host.shared_memory < _SHARED_MEMORY_WARNING:
        yield Finding(
            "warning",
            f"/dev/shm has only {host.shared_memory * 1024:.0f} MiB, and ranks on one host "
            "communicate through it",
            "start the container with --shm-size=1g or more",
        )


def of_load_and_clock(host: Host, executed: ExecutedKernels) -> Iterator[Finding]:
    """Other load on the machine, throttling, and the clock."""
    if host.busy:
        yield Finding(
            "note",
            f"other programs are using this machine (load {host.load:.1f} on "
            f"{host.machine_cores} cores), so the measured rates may be too low",
            "measure again when the machine is idle",
        )
    if executed.throttled:
        yield Finding(
            "warning",
            f"cores were throttled {executed.throttled} times during the measurement, because of "
            "heat or the power limit",
            "check the cooling and the power limit",
        )
    elif host.clock.throttled:
        yield Finding(
            "note",
            f"cores have been throttled {host.clock.throttled} times since boot because of heat",
            "check the cooling if long runs slow down",
        )
    allowed, highest = host.clock.allowed, host.clock.highest
    if allowed is not None and highest is not None and allowed < 0.95 * highest:
        yield Finding(
            "warning",
            f"the CPU clock is limited to {allowed:.1f} of {highest:.1f} GHz",
            f"run `cpupower frequency-set --max {highest:.1f}GHz`",
        )
    # With intel_pstate and amd-pstate-epp, "powersave" still reaches the highest clock under load.
    fixed_low = not (host.clock.driver or "").endswith(("pstate", "pstate-epp"))
    if host.clock.governor == "powersave" and fixed_low:
        yield Finding(
            "warning",
            "the CPU frequency governor is powersave: cores stay at their lowest clock",
            "run `cpupower frequency-set --governor performance`",
        )


def of_execution(isa: Instructions, executed: ExecutedKernels, *, busy: bool) -> Iterator[Finding]:
    """GEMMs that crashed, did not use the instructions that the CPU advertises, or were slow."""
    good = []
    for gemm in executed.products:
        if gemm.error is not None:
            if gemm.error != NOT_TRIED.error:
                yield _failed(gemm)
        elif unused := _unused(gemm, isa):
            yield unused
        else:
            good.append(gemm)
    yield from _slow(good, busy=busy)
    rates = {gemm.dtype: gemm.rate for gemm in executed.products}
    single, half = rates["float32"], rates["bfloat16"]
    if single and half and half < single:
        emulated = instructions.best("bfloat16", isa.advertised) is None
        rates_text = f"{half:,.0f} against {single:,.0f} GFLOP/s"
        if emulated:
            seen = "bf16 GEMMs are slower than fp32 on this CPU: it has no bf16 instructions"
            yield Finding("note", f"{seen} ({rates_text})", "")
        else:
            seen = f"bf16 GEMMs are slower than fp32 GEMMs here: {rates_text}"
            yield Finding("warning", seen, "set model.dtype=float32 until this is fixed")


def _failed(gemm: ExecutedGemm) -> Finding:
    if gemm.signal == "SIGILL":
        return Finding(
            "error",
            f"the {gemm.dtype} GEMM ended with an illegal instruction (SIGILL): the CPU, virtual "
            "machine or container advertises instructions that it cannot run",
            "have the owner of the host expose these instructions, or hide them from oneDNN: "
            "export ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 (or AVX512_CORE, or AVX2)",
        )
    do = "free memory and try again" if gemm.signal == "SIGKILL" else "reinstall torch"
    return Finding("error", f"the {gemm.dtype} GEMM failed: {gemm.error}", do)


def _unused(gemm: ExecutedGemm, isa: Instructions) -> Finding | None:
    flag = instructions.best(gemm.dtype, isa.advertised)
    if flag is None or gemm.dtype == "float32":  # MKL computes fp32, and reports no kernel
        return None
    if gemm.kernel is not None and instructions.uses(gemm.kernel, flag):
        return None
    kernel = f"ran {gemm.kernel}" if gemm.kernel else "reported no kernel"
    seen = f"the CPU advertises {flag}, but oneDNN {kernel} for the {gemm.dtype} GEMM"
    if flag.startswith("amx") and isa.tiles != "granted":
        return Finding(
            "warning",
            f"{seen}: Linux does not permit AMX tiles ({isa.tiles})",
            "use Linux 5.16 or newer, and a container whose seccomp profile allows arch_prctl",
        )
    for name, value in isa.limits.items():
        if name != "ATEN_CPU_CAPABILITY":  # that one limits torch's kernels, not oneDNN's
            return Finding("warning", f"{seen}: {name}={value} disables it", f"unset {name}")
    return Finding(
        "warning", seen, "run `pip install --upgrade torch`: it brings a newer version of oneDNN"
    )


def _slow(gemms: list[ExecutedGemm], *, busy: bool) -> Iterator[Finding]:
    slow = [
        f"{gemm.dtype} {gemm.rate:,.0f} of the expected {gemm.expected:,.0f} GOP/s"
        for gemm in gemms
        if gemm.rate and gemm.expected and gemm.rate < _SLOW * gemm.expected
    ]
    if slow and busy:
        seen = f"GEMMs are slow while other programs use this machine: {', '.join(slow)}"
        yield Finding("note", seen, "measure again when the machine is idle")
    elif slow:
        yield Finding(
            "warning",
            f"GEMMs are slow: {', '.join(slow)}",
            "try more ranks with fewer threads (`intel-ft launch CONFIG --tune`); a virtual "
            "machine may have fewer physical cores, or a lower clock, than it reports",
        )
