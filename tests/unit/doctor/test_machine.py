"""The doctor's facts and findings of machines: recorded trees, real crashes, real limits."""

import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
from support.doctor_facts import (
    XEON,
    executed,
    read_host,
    verbose,
    write_memory,
    write_processor,
)
from support.limits import ILLEGAL
from support.sys_trees import two_sockets_of_four_nodes, write, write_machine

from intel_ft.doctor import findings_machine, gemm_kernels, host, instructions
from intel_ft.doctor.instructions import Instructions
from intel_ft.doctor.step_runner import Outcome, run_steps
from intel_ft.host import cgroup, cpu

AMX = Instructions(tuple(XEON.split()), "granted", {})


def one_socket(root, **more):
    write_machine(root, [("0-15", 128)], 1, **more)
    write_processor(root)
    write_memory(root, 128, 120)
    return root


def quiet(root):
    """That machine, without the load, disks and shared memory of the one that runs this test."""
    return replace(read_host(root), load=0.0, disk={"/": 500.0}, shared_memory=64.0)


def levels(findings):
    return [(finding.level, finding.seen) for finding in findings]


# -- facts


def test_a_whole_machine(tmp_path):
    two_sockets_of_four_nodes(tmp_path)
    write_processor(tmp_path)
    write_memory(tmp_path, 512, 500)
    found = read_host(tmp_path)
    assert (found.cpu, found.sockets, len(found.nodes)) == ("Some CPU", 2, 8)
    assert (found.cores, found.machine_cores, found.threads_per_core) == (112, 112, 2)
    assert (found.memory, found.memory_limit, found.available) == (512, None, 500)
    assert found.clock.now == 2.0
    assert instructions.read(tmp_path).advertised == tuple(XEON.split())


def test_a_machine_that_shows_nothing(tmp_path):
    """As in a container without /sys, and with another /proc."""
    found = host.read(tmp_path)
    assert found.cores == len(os.sched_getaffinity(0)) == found.usable
    assert found.clock == host.Clock(None, None, None, None, None, None, None)
    assert (found.nodes, found.memory, found.family) == ((), 0, 0)
    nothing = instructions.read(tmp_path)
    assert nothing.advertised == () and nothing.tiles is None
    assert instructions.expected("bfloat16", (), found, 2) is None


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_either_version_of_control_groups(tmp_path, version):
    """The innermost group has no limit itself; file pages that can be dropped count as free."""
    top, stat = tmp_path / "sys/fs/cgroup", f"anon {2**29}\ninactive_file {2**29}"
    if version == 2:
        write(tmp_path / "proc/self/cgroup", "0::/pod/job")
        write(top / "pod/cpu.max", "150000 100000")
        write(top / "pod/job/cpu.max", "max 100000")
        write(top / "pod/memory.max", str(2**31))
        write(top / "pod/memory.current", str(2**30))
        write(top / "pod/memory.stat", stat)
        write(top / "pod/job/memory.max", "max")
    else:
        write(tmp_path / "proc/self/cgroup", "9:memory:/pod/job\n4:cpu,cpuacct:/pod/job\n0::/")
        write(top / "cpu/pod/cpu.cfs_quota_us", "150000")
        write(top / "cpu/pod/cpu.cfs_period_us", "100000")
        write(top / "cpu/pod/job/cpu.cfs_quota_us", "-1")
        write(top / "memory/pod/memory.limit_in_bytes", str(2**31))
        write(top / "memory/pod/memory.usage_in_bytes", str(2**30))
        write(top / "memory/pod/memory.stat", stat.replace("inactive", "total_inactive"))
        write(top / "memory/memory.limit_in_bytes", "9223372036854771712")
    write_memory(tmp_path, 64, 60)
    assert cgroup.quota(tmp_path) == 1.5
    assert cgroup.memory_limit(tmp_path) == 2**31
    assert cpu.available_bytes(tmp_path) == 2**31 - 2**29


def test_no_limit_is_no_limit(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/")
    write_memory(tmp_path, 64, 60)
    assert cgroup.quota(tmp_path) is None
    assert cgroup.memory_limit(tmp_path) is None
    assert cpu.available_bytes(tmp_path) == 60 * 2**30


def test_kernels_are_found_by_dtype():
    report = verbose(f32="jit:uni", u8="brg_matmul:avx512_core_vnni", bf16="brg_matmul:x_amx")
    assert gemm_kernels.kernel_name(report, "bfloat16") == "brg_matmul:x_amx"
    assert gemm_kernels.kernel_name(report, "int8") == "brg_matmul:avx512_core_vnni"
    older = (
        "onednn_verbose,exec,cpu,inner_product,brgemm:avx512_core_amx_int8,undef,src_s8::blocked"
    )
    assert gemm_kernels.kernel_name(older, "int8") == "brgemm:avx512_core_amx_int8"
    assert gemm_kernels.kernel_name(report, "float32") == "jit:uni"
    assert gemm_kernels.kernel_name("", "int8") is None


@pytest.mark.parametrize(
    ("kernel", "flag", "used"),
    [
        ("brg_matmul:avx10_1_512_amx", "amx_bf16", True),
        ("brg_matmul:avx512_core_bf16", "amx_bf16", False),
        ("brg_matmul:avx512_core_bf16", "avx512_bf16", True),
        ("brg_matmul:avx10_1_512", "avx512_bf16", True),
        ("gemm:jit:bf16", "avx512_bf16", False),
        ("brg_matmul:avx512_core_vnni", "avx512_vnni", True),
        ("brg_matmul:avx512_core", "avx512_vnni", False),
        ("brg_matmul:avx2_vnni", "avx_vnni", True),
        ("ref_int8:any", "avx_vnni", False),
    ],
)
def test_the_kernel_name_tells_which_instructions_it_uses(kernel, flag, used):
    assert instructions.uses(kernel, flag) is used


def test_the_expected_rate(tmp_path):
    machine = quiet(one_socket(tmp_path))
    # 16 cores x 2 GHz x 1024 operations, half of it (Intel's 4th Gen Xeon brief)
    assert instructions.expected("bfloat16", AMX.advertised, machine, 16) == 16 * 2e9 * 1024 / 2
    assert instructions.expected("int8", AMX.advertised, machine, 4) == 4 * 2e9 * 2048 / 2
    zen4 = replace(machine, vendor="AuthenticAMD", family=25)
    assert instructions.expected("bfloat16", ("avx512_bf16",), zen4, 2) == 2 * 2e9 * 64 / 2
    based = replace(machine, clock=replace(machine.clock, base=3.0))
    assert instructions.expected("float32", ("avx2", "fma"), based, 1) == 3e9 * 32 / 2


# -- crashes


def program_with(steps):
    """The real program of steps, but with these steps."""
    return [
        sys.executable,
        "-c",
        f"import sys, os, signal, time\nfrom intel_ft.doctor import steps\n"
        f"def illegal():\n    exec({ILLEGAL!r}, {{}})\n"
        f"steps.STEPS = {{{steps}}}\nsteps.main(sys.argv[1:])",
    ]


def test_an_illegal_instruction_ends_its_step_and_no_other():
    program = program_with("'a': lambda: 1, 'b': illegal, 'c': lambda: [3], 'd': lambda: 1 / 0")
    outcomes, _ = run_steps("abcd", dict(os.environ), 60, program)
    assert outcomes["a"] == Outcome(1)
    assert outcomes["b"].signal == "SIGILL" and "SIGILL" in outcomes["b"].error
    assert outcomes["c"] == Outcome([3])
    assert outcomes["d"].error == "ZeroDivisionError: division by zero"


def test_without_its_first_step_no_other_is_tried():
    outcomes, _ = run_steps(
        "ab", dict(os.environ), 60, program_with("'a': illegal, 'b': lambda: 1")
    )
    assert outcomes["a"].signal == "SIGILL"
    assert outcomes["b"].error == "not tried"


def test_a_step_without_an_answer_is_killed():
    program = program_with("'a': lambda: 1, 'b': lambda: time.sleep(600), 'c': lambda: 3")
    outcomes, _ = run_steps("abc", dict(os.environ), 10, program)
    assert outcomes["b"].error == "no answer in 10 s"
    assert (outcomes["a"].value, outcomes["c"].value) == (1, 3)


def test_steps_that_exit_or_are_killed_or_print():
    program = program_with(
        "'a': lambda: print('{not ours}'), 'b': lambda: os._exit(7), 'c': lambda: sys.exit(1), "
        "'d': lambda: os.kill(os.getpid(), signal.SIGKILL)"
    )
    outcomes, _ = run_steps("abcd", dict(os.environ), 60, program)
    assert outcomes["a"] == Outcome(None)
    assert "exit code 7" in outcomes["b"].error
    assert outcomes["c"].error == "SystemExit: 1"
    assert "memory" in outcomes["d"].error


def test_an_illegal_instruction_becomes_an_error(tmp_path):
    machine = quiet(one_socket(tmp_path))
    outcomes, _ = run_steps(
        "ab", dict(os.environ), 60, program_with("'a': lambda: 1, 'b': illegal")
    )
    ran = executed(machine, AMX, verbose(u8="brg:avx512_core_amx"), bfloat16=outcomes["b"])
    (finding, *_) = findings_machine.of_execution(AMX, ran, busy=False)
    assert finding.level == "error" and "bfloat16" in finding.seen
    assert "illegal instruction (SIGILL)" in finding.seen and "ONEDNN_MAX_CPU_ISA" in finding.do


def test_a_gemm_that_was_killed_is_an_error(tmp_path):
    machine = quiet(one_socket(tmp_path))
    killed = Outcome(error="SIGKILL: killed", signal="SIGKILL")
    ran = executed(machine, AMX, verbose(bf16="x_amx"), int8=killed)
    assert ("error", "the int8 GEMM failed: SIGKILL: killed") in levels(
        findings_machine.of_execution(AMX, ran, busy=False)
    )


# -- instructions


GOOD = {"bfloat16": 20_000.0, "int8": 40_000.0, "float32": 2_000.0}
AMX_RAN = {"bf16": "brg_matmul:avx10_1_512_amx", "u8": "brg_matmul:avx10_1_512_amx"}


def of_execution(root, isa=AMX, busy=False, ran=AMX_RAN, **rates):
    machine = quiet(one_socket(root))
    found = executed(machine, isa, verbose(**ran), **GOOD | rates)
    return list(findings_machine.of_execution(isa, found, busy=busy))


def test_a_machine_that_works_has_no_findings(tmp_path):
    assert of_execution(tmp_path) == []


def test_amx_that_is_advertised_but_not_used(tmp_path):
    ran = {**AMX_RAN, "bf16": "brg_matmul:avx512_core_bf16"}
    (found,) = of_execution(tmp_path, ran=ran)
    assert found.level == "warning"
    assert "advertises amx_bf16" in found.seen and "brg_matmul:avx512_core_bf16" in found.seen
    assert "bfloat16 GEMM" in found.seen
    limited = replace(AMX, limits={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"})
    (found,) = of_execution(tmp_path, limited, ran=ran)
    assert found.do == "unset ONEDNN_MAX_CPU_ISA"
    of_torch = replace(AMX, limits={"ATEN_CPU_CAPABILITY": "avx2"})
    (found,) = of_execution(tmp_path, of_torch, ran=ran)
    assert "ATEN_CPU_CAPABILITY" not in found.seen + found.do
    refused = replace(AMX, tiles="Operation not permitted", limits=limited.limits)
    (found,) = of_execution(tmp_path, refused, ran=ran)
    assert "AMX tiles (Operation not permitted)" in found.seen


def test_gemms_that_are_slow(tmp_path):
    (found,) = of_execution(tmp_path, bfloat16=5_000.0)
    assert found.level == "warning"
    assert found.seen.endswith("slow: bfloat16 5,000 of the expected 16,384 GOP/s")
    (found,) = of_execution(tmp_path, bfloat16=5_000.0, busy=True)
    assert found.level == "note"


def test_bf16_slower_than_fp32(tmp_path):
    old = Instructions(("avx2", "fma"), None, {})
    (found,) = of_execution(tmp_path, old, ran={}, bfloat16=100.0)
    assert found.level == "note" and "no bf16 instructions" in found.seen
    found = of_execution(tmp_path, bfloat16=1_000.0, busy=True)[-1]
    assert found.level == "warning" and "model.dtype=float32" in found.do


FILTER = """
import ctypes, struct
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 158), (6, 0, 0, 0x50000 | 1), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))
program = Program(len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
from intel_ft.doctor.instructions import tile_permission
print(tile_permission())
"""


def test_a_container_that_forbids_tiles():
    """A seccomp filter that answers arch_prctl with EPERM."""
    done = subprocess.run(
        [sys.executable, "-c", FILTER], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "Operation not permitted", done.stderr


def test_tiles_are_granted_only_where_the_cpu_has_them():
    granted = instructions.tile_permission() == "granted"
    assert "amx_tile" in cpu.cpu_flags() or not granted


# -- limits, memory, disks, clock


def test_fewer_cores_and_less_memory_than_there_are(tmp_path):
    one_socket(tmp_path, quota="100000 100000")
    write(tmp_path / "sys/fs/cgroup/jobs/memory.max", str(2**31))
    machine = quiet(tmp_path)
    assert (machine.usable, machine.memory_limit) == (1, 2)
    assert levels(findings_machine.of_limits(machine)) == [
        ("note", "1 of 16 cores can be used: the control group allows 1"),
        ("note", "the control group allows 2.0 of 128.0 GiB of memory"),
        ("warning", "only 2.0 GiB of memory are available"),
    ]


def test_less_than_one_core(tmp_path):
    machine = quiet(one_socket(tmp_path, quota="50000 100000"))
    assert ("warning", "the control group allows only 0.5 cores") in levels(
        findings_machine.of_limits(machine)
    )


def test_a_slurm_job_without_a_cpuset(tmp_path, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURMD_NODENAME", platform.node())):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    machine = quiet(one_socket(tmp_path))
    assert levels(findings_machine.of_limits(machine))[0] == (
        "note",
        "2 of 16 cores can be used: Slurm allows 2",
    )


def test_bound_to_some_cores(tmp_path):
    machine = host.read(one_socket(tmp_path), {0, 1})
    found = levels(findings_machine.of_limits(machine))
    assert ("note", "2 of 16 cores can be used: this process is bound to these cores") in found


def test_hardly_any_memory(tmp_path):
    one_socket(tmp_path)
    write_memory(tmp_path, 128, 0.5)
    assert levels(findings_machine.of_limits(quiet(tmp_path))) == [
        ("error", "only 0.5 GiB of memory are available")
    ]


SMALL = """
from pathlib import Path
from dataclasses import asdict
from intel_ft.doctor import findings_machine, host
for finding in findings_machine.of_limits(host.read()):
    print(finding.level, finding.seen)
"""


def test_a_full_disk_and_little_shared_memory():
    """A namespace whose /dev/shm has 64 MiB, as in Docker, and holds the Hub's cache."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    mount = 'mount -t tmpfs -o size=64m shm /dev/shm; exec "$@"'
    out = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", mount, "sh", sys.executable, "-c", SMALL],
        env=os.environ | {"HF_HOME": "/dev/shm/hf"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "error only 0.1 GiB of disk space are free for /dev/shm/hf" in out
    assert "warning /dev/shm has only 64 MiB" in out


def test_a_disk_that_will_soon_be_full(tmp_path):
    machine = replace(quiet(tmp_path), disk={"/data": 4.0, "/": 500.0})
    assert ("warning", "only 4.0 GiB of disk space are free for /data") in levels(
        findings_machine.of_limits(machine)
    )


def test_a_cache_that_another_user_owns(tmp_path):
    """As in a container that runs with another --user than it was built for."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    (tmp_path / "root").mkdir(mode=0o700)
    other_user = SMALL.replace("for finding", "import os; os.seteuid(65534)\nfor finding")
    out = subprocess.run(
        [sys.executable, "-c", other_user],
        env=os.environ | {"HF_HOME": str(tmp_path / "root/hf")},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"error this user has no access to {tmp_path / 'root/hf'}" in out


def with_clock(root, **files):
    one_socket(root)
    for number in range(16):
        for name, value in files.items():
            folder = "thermal_throttle" if name.endswith("count") else "cpufreq"
            write(root / f"sys/devices/system/cpu/cpu{number}/{folder}/{name}", str(value))
    return quiet(root)


def of_clock(machine, throttled=None):
    ran = executed(machine, AMX, throttled=throttled)
    return levels(findings_machine.of_load_and_clock(machine, ran))


def test_a_clock_that_is_as_it_should_be(tmp_path):
    machine = with_clock(
        tmp_path,
        scaling_cur_freq=3_000_000,
        base_frequency=2_000_000,
        cpuinfo_max_freq=3_800_000,
        scaling_max_freq=3_800_000,
        scaling_governor="powersave",
        scaling_driver="intel_pstate",
        core_throttle_count=0,
    )
    assert machine.clock == host.Clock(3.0, 2.0, 3.8, 3.8, "powersave", "intel_pstate", 0)
    assert of_clock(machine) == []


def test_a_clock_that_is_capped(tmp_path):
    machine = with_clock(tmp_path, cpuinfo_max_freq=3_800_000, scaling_max_freq=2_000_000)
    assert of_clock(machine) == [("warning", "the CPU clock is limited to 2.0 of 3.8 GHz")]


def test_the_lowest_clock(tmp_path):
    machine = with_clock(tmp_path, scaling_governor="powersave", scaling_driver="acpi-cpufreq")
    assert of_clock(machine) == [
        ("warning", "the CPU frequency governor is powersave: cores stay at their lowest clock")
    ]


def test_throttling(tmp_path):
    machine = with_clock(tmp_path, core_throttle_count=3)
    assert machine.clock.throttled == 48
    ((level, seen),) = of_clock(machine, throttled=0)
    assert level == "note" and "48 times" in seen
    ((level, seen),) = of_clock(machine, throttled=5)
    assert level == "warning" and "5 times during the measurement" in seen


def test_others_at_work(tmp_path):
    machine = replace(quiet(one_socket(tmp_path)), load=9.0)
    ((level, seen),) = of_clock(machine)
    assert level == "note" and "load 9.0 on 16 cores" in seen
