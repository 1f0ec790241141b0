"""The doctor's facts and findings of packages, launchers and the runtime.

Real distributions of wrong versions, packages that break or crash on import, launchers on PATH.
"""

import os
import re
import stat
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from support.doctor_facts import read_host, write_distribution
from support.limits import ILLEGAL
from support.sys_trees import two_sockets_of_four_nodes, write, write_machine

from intel_ft.distributed.placement import ranks_per_host
from intel_ft.doctor import findings_software, host, runtime, software
from intel_ft.doctor.runtime import Runtime
from intel_ft.doctor.step_runner import NOT_TRIED, Outcome, run_steps
from intel_ft.host import topology
from intel_ft.host.topology import Core, Topology
from intel_ft.versions import installed

ROOT = Path(__file__).parents[3]
WELL = {
    **{"torch": "2.13.0+cpu", "transformers": "5.5.4", "peft": "0.21.2", "accelerate": "1.15.0"},
    **{"datasets": "5.0.1", "optimum-intel": "2.2.0", "openvino": "2026.4.1", "nncf": "3.4.0"},
    **{"openvino-tokenizers": "2026.4.1.0", "openvino-genai": "2026.4.1.0"},
    **{"bitsandbytes": "0.50.2", "oneccl": "2022.1.2"},
}
CPU_BUILD = {"version": "2.13.0+cpu", "cuda": None, "devices": []}


def components_of(versions, **outcomes):
    """Components by name with these installed versions; all steps succeed except for `outcomes`."""
    steps = software.steps_to_run(versions.get)
    good = dict.fromkeys(steps, Outcome()) | {"torch": Outcome(CPU_BUILD), "openvino": Outcome([])}
    given = {name.replace("__", " "): outcome for name, outcome in outcomes.items()}
    return {part.name: part for part in software.read(good | given, versions.get)}


def finding(components, name):
    """The finding about this component; None if there is none."""
    findings = findings_software.of_software(list(components.values()))
    return next((found for found in findings if f"{name}: " in found.seen), None)


def without(name, **others):
    return {key: value for key, value in (WELL | others).items() if key != name}


def test_an_environment_that_works():
    components = components_of(WELL, openvino=Outcome(["CPU", "GPU"]))
    assert {components[name].state for name in WELL if name != "oneccl"} == {"usable"}
    assert components["openvino"].detail == "2026.4.1, devices CPU, GPU"
    assert components["IPEX"].state == "missing" and finding(components, "IPEX") is None


@pytest.mark.parametrize(
    ("name", "level"),
    [
        *((name, "error") for name in ("torch", "transformers", "peft", "accelerate", "datasets")),
        *((name, "note") for name in ("optimum-intel", "openvino", "nncf", "bitsandbytes")),
    ],
)
def test_a_missing_package(name, level):
    outcomes = {"torch": NOT_TRIED} if name == "torch" else {}
    components = components_of(without(name), **outcomes)
    assert components[name].state == "missing"
    found = finding(components, name)
    assert found.level == level and "pip install" in found.do


@pytest.mark.parametrize(
    ("name", "version", "level", "fact"),
    [
        ("torch", "2.7.1", "error", "2.7.1 is too old: at least 2.8"),
        ("transformers", "4.57.0", "error", "4.57.0 is too old: at least 5.5"),
        ("transformers", "5.6.1", "warning", "2.2.0 needs transformers < 5.6, but 5.6.1"),
        ("openvino", "2025.1.0", "warning", "2025.1.0 is too old: at least 2026.4"),
        ("openvino", "2026.5.0", "warning", "2026.4.1.0 does not match openvino 2026.5.0"),
    ],
)
def test_a_wrong_version(tmp_path, monkeypatch, name, version, level, fact):
    """The version of the first such distribution on the path counts."""
    write_distribution(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    assert installed(name) == version
    components = components_of(WELL | {name: installed(name)})
    findings = list(findings_software.of_software(list(components.values())))
    assert [found.level for found in findings if fact in found.seen][:1] == [level], findings


def test_packages_that_break_or_die_on_import(tmp_path):
    """In a real child process, which still tries the other packages."""
    write_distribution(tmp_path, "peft", "0.21.2", "raise ImportError('cannot import name X')")
    write_distribution(tmp_path, "bitsandbytes", "0.50.2", ILLEGAL)
    write_distribution(tmp_path, "datasets", "5.0.1", "")
    steps = ["token", "import peft", "import bitsandbytes", "import datasets"]
    outcomes, _ = run_steps(steps, os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, 60)
    assert outcomes["import datasets"] == Outcome()
    outcomes["oneccl"] = Outcome()
    components = {
        part.name: part
        for part in software.read(
            outcomes
            | {"torch": Outcome(CPU_BUILD), "openvino": Outcome(["CPU"])}
            | dict.fromkeys(["import transformers", "import accelerate"], Outcome()),
            WELL.get,
        )
    }
    found = finding(components, "peft")
    assert found.level == "error" and "ImportError: cannot import name X" in found.seen
    found = finding(components, "bitsandbytes")
    assert found.level == "warning" and "SIGILL" in found.seen


def test_ipex_is_imported_only_with_the_torch_it_is_built_for():
    """With any other torch its import ends the process."""
    name = "intel_extension_for_pytorch"
    versions = WELL | {name: "2.8.0"}
    assert f"import {name}" not in software.steps_to_run(versions.get)
    found = finding(components_of(versions), "IPEX")
    assert found.level == "warning"
    assert "2.8.0 is built for torch 2.8, but 2.13.0+cpu" in found.seen
    matching = versions | {"torch": "2.8.0+cpu"}
    assert f"import {name}" in software.steps_to_run(matching.get)
    assert components_of(matching)["IPEX"].state == "usable"
    broken = components_of(matching, **{f"import__{name}": Outcome(error="OSError: x")})
    assert finding(broken, "IPEX").level == "warning"


def test_a_torchvision_that_does_not_fit():
    versions = WELL | {"torchvision": "0.28.0"}
    assert "torchvision" not in components_of(versions)
    error = Outcome(error="RuntimeError: operator torchvision::nms does not exist")
    found = finding(components_of(versions, import__torchvision=error), "torchvision")
    assert found.level == "warning" and found.do.startswith("pip uninstall torchvision")


def oneccl(root, prefix):
    """The outcome of the real search with this oneCCL root and this prefix of Python."""
    code = (
        f"import sys; sys.prefix = {str(prefix)!r}\n"
        "from intel_ft.doctor import steps; steps.main(['oneccl'])"
    )
    done, _ = run_steps(
        ["oneccl"], os.environ | {"CCL_ROOT": str(root)}, 60, (sys.executable, "-c", code)
    )
    return done["oneccl"]


def test_oneccl_missing_or_without_its_plugin(tmp_path):
    (tmp_path / "lib").mkdir()
    nothing = oneccl(tmp_path, tmp_path)
    if nothing.value is None:
        pytest.skip("an oneAPI installation has it")
    found = finding(components_of(without("oneccl"), oneccl=nothing), "oneCCL")
    assert found.level == "note" and "pip install oneccl==2022.1.2" in found.do
    found = finding(components_of(WELL | {"oneccl": "2022.2.0"}, oneccl=nothing), "oneCCL")
    assert found.level == "warning" and "2022.2.0 oneCCL (libccl_legacy_cpu.so)" in found.seen
    (tmp_path / "lib/libccl_legacy_cpu.so").write_bytes(b"not a library")
    (tmp_path / "lib/libccl.so.2").write_bytes(b"not a library")
    found = finding(components_of(WELL, oneccl=oneccl(tmp_path, tmp_path)), "oneCCL")
    assert found.level == "warning" and "cannot be loaded" in found.seen


# -- launchers and devices


@pytest.fixture
def path(tmp_path, monkeypatch):
    """PATH is a single folder, and Python comes without launchers; returns what adds a program."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python/bin/python"))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, output):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho '{output}'\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return put


@pytest.mark.parametrize(
    ("output", "state", "detail"),
    [
        ("Intel(R) MPI Library for Linux* OS, Version 2021.18", "usable", "Intel MPI, "),
        ("mpirun (Open MPI) 4.1.4", "usable", "Open MPI, "),
        ("HYDRA build details:", "usable", "MPICH, "),
        ("mpirun: what?", "broken", "is not from Intel MPI"),
    ],
)
def test_which_mpi(path, output, state, detail):
    path("mpirun", output)
    components = components_of(WELL)
    assert components["MPI"].state == state and detail in components["MPI"].detail
    found = finding(components, "MPI")
    assert (found is None) == (state == "usable")


def test_no_mpi(path):
    found = finding(components_of(WELL), "MPI")
    assert found.level == "note" and "impi-rt" in found.do


def test_oneccl_under_open_mpi(path):
    path("mpirun", "mpirun (Open MPI) 4.1.4")
    seen = [
        found.seen for found in findings_software.of_software(list(components_of(WELL).values()))
    ]
    assert any("oneCCL under Open MPI" in text and "slower than gloo" in text for text in seen)


def test_a_gpu_that_torch_does_not_see(path):
    components = components_of(WELL)
    assert components["CUDA"].state == "missing" and finding(components, "CUDA") is None
    path("nvidia-smi", "NVIDIA H200")
    found = finding(components_of(WELL), "CUDA")
    assert found.level == "warning" and "CPU build" in found.seen
    built = Outcome(CPU_BUILD | {"cuda": "12.8"})
    assert "sees no device" in finding(components_of(WELL, torch=built), "CUDA").seen
    sees = Outcome(CPU_BUILD | {"cuda": "12.8", "devices": ["NVIDIA H200"]})
    assert components_of(WELL, torch=sees)["CUDA"].detail == "12.8, NVIDIA H200"


# -- runtime and token


GOOD = Runtime(None, ("/lib/libgomp.so.1",), (), "madvise", 0.0, {})


def of_runtime(found, machine=None):
    """(level, seen) of the findings for this runtime, on one NUMA node of 16 cores."""
    machine = machine or replace(host.read(), usable=16, nodes=(64.0,), nodes_with_cores=1)
    return [(f.level, f.seen) for f in findings_software.of_runtime(found, machine)]


@pytest.mark.parametrize(
    ("quota", "cores", "reason"),
    [
        ((None,), "0-3 | 4-7", "each rank binds itself"),
        ((8.5,), "0-3 | 4-7", "each rank binds itself"),
        ((4.0,), "none", "the control group allows 4 of 8 cores, but does not say which ones"),
        ((4.0, topology.SLURM), "none", "Slurm allows 4 of 8 cores, but does not say which ones"),
    ],
)
def test_what_ranks_would_be_bound_to(monkeypatch, quota, cores, reason):
    host = Topology(tuple(Core(0, cpu // 4, (cpu,)) for cpu in range(8)), {}, *quota)
    monkeypatch.setattr(topology, "read", lambda: host)
    monkeypatch.setattr(runtime, "chosen_ranks", lambda host, _: ranks_per_host(host))
    ranks, bound = runtime._placement()
    assert (ranks.value, bound.value, bound.reason) == ("2", cores, reason)


def test_two_openmp_runtimes_in_one_process(tmp_path):
    """Both are really loaded: the step reads the memory map of its own process."""
    assert of_runtime(GOOD) == []
    compiler = subprocess.run(
        ["gcc", "-shared", "-x", "c", "/dev/null", "-o", tmp_path / "libiomp5.so"],
        capture_output=True,
        check=False,
    )
    if compiler.returncode:
        pytest.skip("no compiler to make a library with")
    code = (
        "import ctypes; ctypes.CDLL('libgomp.so.1')\n"
        "from intel_ft.doctor import steps; steps.main(['openmp'])"
    )
    outcomes, _ = run_steps(
        ["openmp"],
        os.environ | {"LD_PRELOAD": str(tmp_path / "libiomp5.so")},
        60,
        (sys.executable, "-c", code),
    )
    ((level, text),) = of_runtime(replace(GOOD, openmp=tuple(outcomes["openmp"].value)))
    assert level == "warning" and "2 OpenMP runtimes (libgomp, libiomp5)" in text


def test_what_the_environment_sets(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = runtime.read({"backend": Outcome([]), "openmp": Outcome([])})
    assert "HF_TOKEN" not in found.variables
    seen = of_runtime(replace(GOOD, variables=found.variables))
    assert [level for level, _ in seen] == ["note", "note"]
    assert seen[0][1].startswith("OMP_NUM_THREADS=3, but 16 cores can be used")
    assert "OMP_PROC_BIND" in seen[1][1]


def test_huge_pages_that_are_off(tmp_path):
    write(tmp_path / "sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    ((level, text),) = of_runtime(replace(GOOD, transparent=runtime.transparent_pages(tmp_path)))
    assert level == "note" and "huge pages are disabled" in text
    assert runtime.transparent_pages(tmp_path / "none") is None


def test_several_numa_nodes(tmp_path):
    ((level, text),) = of_runtime(GOOD, read_host(two_sockets_of_four_nodes(tmp_path)))
    assert level == "note" and "8 NUMA nodes" in text


def test_nodes_of_memory_alone_are_not_for_ranks(tmp_path):
    """A socket with HBM or CXL in a node without cores: `launch` starts one rank there."""
    host = read_host(write_machine(tmp_path, [("0-7", 64), ("", 32)], 2))
    assert host.nodes == (64.0, 32.0)
    assert of_runtime(GOOD, host) == []


def test_a_run_that_could_not_even_start(tmp_path):
    """pydantic is broken."""
    write(tmp_path / "pydantic.py", "raise ImportError('no pydantic_core')")
    path = f"{tmp_path}:{ROOT}"
    outcomes, _ = run_steps(["openmp", "backend"], os.environ | {"PYTHONPATH": path}, 60)
    ((level, text),) = of_runtime(replace(GOOD, problem=outcomes["backend"].error))
    assert level == "error" and "no pydantic_core" in text
    assert of_runtime(replace(GOOD, problem=NOT_TRIED.error)) == []


def test_the_token_is_present_or_not_and_never_shown(tmp_path):
    bare = {name: value for name, value in os.environ.items() if "TOKEN" not in name}
    outcomes, stderr = run_steps(["token"], bare | {"HF_HOME": str(tmp_path)}, 60)
    assert outcomes["token"] == Outcome(False)
    (found,) = findings_software.of_token(False)
    assert found.level == "note" and "hf auth login" in found.do
    outcomes, stderr = run_steps(["token"], bare | {"HF_TOKEN": "hf_secret"}, 60)
    assert outcomes["token"] == Outcome(True) and "secret" not in stderr
    assert list(findings_software.of_token(True)) == []


def test_the_oldest_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["openvino"], *extras["qlora"]]
    oldest = dict(
        match.groups() for line in requirements if (match := re.match(r"([\w-]+)>=([\d.]+)", line))
    )
    for package in software.PACKAGES:
        assert software.release(oldest[package.name]) == package.oldest, package.name
