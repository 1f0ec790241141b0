"""The doctor's facts and findings of packages, launchers and the runtime: real distributions of
wrong versions, packages that break or die on import, launchers on PATH.
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
from support.sys_trees import two_sockets_of_four_nodes, write

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


def seen(found, **outcomes):
    """Components by name, where these distributions are `found` and every step succeeds but these
    outcomes.
    """
    steps = software.steps_to_run(found.get)
    good = dict.fromkeys(steps, Outcome()) | {"torch": Outcome(CPU_BUILD), "openvino": Outcome([])}
    given = {name.replace("__", " "): outcome for name, outcome in outcomes.items()}
    return {part.name: part for part in software.read(good | given, found.get)}


def finding(components, name):
    """What is said of this component; None where nothing is."""
    said = findings_software.of_software(list(components.values()))
    return next((found for found in said if f"{name}: " in found.seen), None)


def without(name, **others):
    return {key: value for key, value in (WELL | others).items() if key != name}


def test_an_environment_that_works():
    components = seen(WELL, openvino=Outcome(["CPU", "GPU"]))
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
    components = seen(without(name), **outcomes)
    assert components[name].state == "missing"
    found = finding(components, name)
    assert found.level == level and "pip install" in found.do


@pytest.mark.parametrize(
    ("name", "version", "level", "said"),
    [
        ("torch", "2.7.1", "error", "2.7.1, but 2.8 is the oldest that will do"),
        ("transformers", "4.57.0", "error", "4.57.0, but 5.5 is the oldest"),
        ("transformers", "5.6.1", "warning", "2.2.0 needs transformers < 5.6, here is 5.6.1"),
        ("openvino", "2025.1.0", "warning", "2025.1.0, but 2026.4 is the oldest"),
        ("openvino", "2026.5.0", "warning", "2026.4.1.0 beside openvino 2026.5.0"),
    ],
)
def test_a_wrong_version(tmp_path, monkeypatch, name, version, level, said):
    """Of a distribution that is installed: the first on the path counts."""
    write_distribution(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    assert installed(name) == version
    components = seen(WELL | {name: installed(name)})
    findings = list(findings_software.of_software(list(components.values())))
    assert [found.level for found in findings if said in found.seen][:1] == [level], findings


def test_packages_that_break_or_die_on_import(tmp_path):
    """In a real child. The others are tried all the same."""
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


def test_ipex_is_imported_beside_its_own_torch_alone():
    """Elsewhere its import ends the process."""
    name = "intel_extension_for_pytorch"
    found = WELL | {name: "2.8.0"}
    assert f"import {name}" not in software.steps_to_run(found.get)
    said = finding(seen(found), "IPEX")
    assert said.level == "warning"
    assert "2.8.0 is made for torch 2.8, here is 2.13.0+cpu" in said.seen
    fitting = found | {"torch": "2.8.0+cpu"}
    assert f"import {name}" in software.steps_to_run(fitting.get)
    assert seen(fitting)["IPEX"].state == "usable"
    broken = seen(fitting, **{f"import__{name}": Outcome(error="OSError: x")})
    assert finding(broken, "IPEX").level == "warning"


def test_a_torchvision_that_does_not_fit():
    found = WELL | {"torchvision": "0.28.0"}
    assert "torchvision" not in seen(found)
    error = Outcome(error="RuntimeError: operator torchvision::nms does not exist")
    said = finding(seen(found, import__torchvision=error), "torchvision")
    assert said.level == "warning" and said.do.startswith("pip uninstall torchvision")


def oneccl(root, prefix):
    """What the real search says with this oneCCL root and this Python's prefix."""
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
    said = finding(seen(without("oneccl"), oneccl=nothing), "oneCCL")
    assert said.level == "note" and "pip install oneccl==2022.1.2" in said.do
    said = finding(seen(WELL | {"oneccl": "2022.2.0"}, oneccl=nothing), "oneCCL")
    assert said.level == "warning" and "2022.2.0 oneCCL (libccl_legacy_cpu.so)" in said.seen
    (tmp_path / "lib/libccl_legacy_cpu.so").write_bytes(b"not a library")
    (tmp_path / "lib/libccl.so.2").write_bytes(b"not a library")
    said = finding(seen(WELL, oneccl=oneccl(tmp_path, tmp_path)), "oneCCL")
    assert said.level == "warning" and "cannot be loaded" in said.seen


# -- launchers and devices


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder that is all of PATH, beside no launcher that came with Python."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python/bin/python"))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, says):
        program = folder / name
        program.write_text(f"#!/bin/sh\necho '{says}'\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return put


@pytest.mark.parametrize(
    ("says", "state", "detail"),
    [
        ("Intel(R) MPI Library for Linux* OS, Version 2021.18", "usable", "Intel MPI, "),
        ("mpirun (Open MPI) 4.1.4", "usable", "Open MPI, "),
        ("HYDRA build details:", "usable", "MPICH, "),
        ("mpirun: what?", "broken", "is none of Intel MPI"),
    ],
)
def test_which_mpi(path, says, state, detail):
    path("mpirun", says)
    components = seen(WELL)
    assert components["MPI"].state == state and detail in components["MPI"].detail
    said = finding(components, "MPI")
    assert (said is None) == (state == "usable")


def test_no_mpi(path):
    said = finding(seen(WELL), "MPI")
    assert said.level == "note" and "impi-rt" in said.do


def test_oneccl_under_open_mpi(path):
    path("mpirun", "mpirun (Open MPI) 4.1.4")
    said = [found.seen for found in findings_software.of_software(list(seen(WELL).values()))]
    assert "oneCCL under Open MPI goes over TCP, slower than gloo" in said


def test_a_gpu_that_torch_does_not_see(path):
    components = seen(WELL)
    assert components["CUDA"].state == "missing" and finding(components, "CUDA") is None
    path("nvidia-smi", "NVIDIA H200")
    said = finding(seen(WELL), "CUDA")
    assert said.level == "warning" and "CPU build" in said.seen
    built = Outcome(CPU_BUILD | {"cuda": "12.8"})
    assert "sees no device" in finding(seen(WELL, torch=built), "CUDA").seen
    sees = Outcome(CPU_BUILD | {"cuda": "12.8", "devices": ["NVIDIA H200"]})
    assert seen(WELL, torch=sees)["CUDA"].detail == "12.8, NVIDIA H200"


# -- runtime and token


GOOD = Runtime(None, ("/lib/libgomp.so.1",), (), "madvise", 0.0, {})


def of_runtime(found, machine=None):
    """(level, what was seen) for this runtime, on one NUMA node of 16 cores."""
    machine = machine or replace(host.read(), usable=16, nodes=(64.0,))
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
    monkeypatch.setattr(runtime, "tuned", lambda host: None)
    ranks, bound = runtime._placement()
    assert (ranks.value, bound.value, bound.reason) == ("2", cores, reason)


def test_two_openmp_runtimes_in_one_process(tmp_path):
    """Both are loaded: the process's own map is what is read."""
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
    said = of_runtime(replace(GOOD, variables=found.variables))
    assert [level for level, _ in said] == ["note", "note"]
    assert said[0][1].startswith("OMP_NUM_THREADS=3, where 16 cores can be used")
    assert said[1][1].startswith("OMP_PROC_BIND set")


def test_huge_pages_that_are_off(tmp_path):
    write(tmp_path / "sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    ((level, text),) = of_runtime(replace(GOOD, transparent=runtime.transparent_pages(tmp_path)))
    assert level == "note" and "huge pages are off" in text
    assert runtime.transparent_pages(tmp_path / "none") is None


def test_several_numa_nodes(tmp_path):
    ((level, text),) = of_runtime(GOOD, read_host(two_sockets_of_four_nodes(tmp_path)))
    assert level == "note" and text.startswith("8 NUMA nodes")


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
    outcomes, said = run_steps(["token"], bare | {"HF_HOME": str(tmp_path)}, 60)
    assert outcomes["token"] == Outcome(False)
    (found,) = findings_software.of_token(False)
    assert found.level == "note" and "hf auth login" in found.do
    outcomes, said = run_steps(["token"], bare | {"HF_TOKEN": "hf_secret"}, 60)
    assert outcomes["token"] == Outcome(True) and "secret" not in said
    assert list(findings_software.of_token(True)) == []


def test_the_oldest_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    said = [*project["dependencies"], *extras["openvino"], *extras["qlora"]]
    oldest = dict(
        found.groups() for line in said if (found := re.match(r"([\w-]+)>=([\d.]+)", line))
    )
    for package in software.PACKAGES:
        assert software.release(oldest[package.name]) == package.oldest, package.name
