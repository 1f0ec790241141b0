"""Facts of the software: which packages and programs are usable, and how to fix the others."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from intel_ft.distributed.launch import commands
from intel_ft.doctor.step_runner import Outcome
from intel_ft.errors import EnvironmentProblem

State = Literal["usable", "missing", "mismatched", "broken"]

VersionOf = Callable[[str], str | None]
"""The version of a distribution by its name; None if it is not installed."""

_IPEX = "intel_extension_for_pytorch"
_OPENVINO = "pip install 'intel_ft[openvino]'"
_QLORA = "pip install 'intel_ft[qlora]'"


@dataclass(frozen=True)
class Component:
    """A package or program: what it is needed for, its version or problem, and the remedy.

    `needed_for` is EVERY_RUN if no run works without it. `remedy` is empty if it is usable.
    """

    name: str
    needed_for: str
    state: State
    detail: str
    remedy: str


@dataclass(frozen=True)
class Package:
    """A distribution, the oldest version that works, and the step that tries it, if any."""

    name: str
    oldest: tuple[int, ...]
    needed_for: str
    install: str
    step: str | None


EVERY_RUN = "every run"
PACKAGES = (
    *(
        Package(
            name, oldest, EVERY_RUN, f"pip install '{name}>={'.'.join(map(str, oldest))}'", step
        )
        for name, oldest, step in (
            ("torch", (2, 8), "torch"),
            ("transformers", (5, 5), "import transformers"),
            ("peft", (0, 21), "import peft"),
            ("accelerate", (1, 13), "import accelerate"),
            ("datasets", (4,), "import datasets"),
        )
    ),
    Package("optimum-intel", (2, 2), "export", _OPENVINO, None),
    Package("openvino", (2026, 4), "export, generate", _OPENVINO, "openvino"),
    Package("openvino-tokenizers", (2026, 4), "export", _OPENVINO, None),
    Package("openvino-genai", (2026, 4), "generate, chat", _OPENVINO, None),
    Package("nncf", (3, 4), "export in INT8 and INT4", _OPENVINO, None),
    Package("bitsandbytes", (0, 50), "qlora", _QLORA, "import bitsandbytes"),
)


def steps_to_run(version_of: VersionOf) -> list[str]:
    """The steps for the installed packages.

    IPEX is tried only with the torch it is built for; with any other its import ends the process.
    """
    imports = [
        package.step
        for package in PACKAGES[1:]
        if package.step is not None and version_of(package.name) is not None
    ]
    if version_of("torchvision") is not None:
        imports.append("import torchvision")
    if _ipex_mismatch(version_of) is None and version_of(_IPEX) is not None:
        imports.append(f"import {_IPEX}")
    return ["token", "oneccl", *imports]


def read(outcomes: dict[str, Outcome], version_of: VersionOf) -> list[Component]:
    """All components, from the outcomes of their steps and the installed versions."""
    return [
        *(_package(package, outcomes, version_of) for package in PACKAGES),
        *_torchvision(outcomes, version_of),
        _ipex(outcomes, version_of),
        _oneccl(outcomes, version_of),
        _mpi(),
        _cuda(outcomes["torch"].value),
    ]


def release(text: str) -> tuple[int, ...]:
    """(2, 13, 0) for 2.13.0+cpu."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _package(package: Package, outcomes: dict[str, Outcome], version_of: VersionOf) -> Component:
    outcome = outcomes.get(package.step or "", Outcome())
    version = version_of(package.name)
    if version is None and isinstance(outcome.value, dict):  # a torch that was built from source
        version = str(outcome.value["version"])
    state: State = "usable"
    detail, remedy = version or "", package.install
    if version is None:
        state, detail = "missing", "not installed"
    elif release(version) < package.oldest:
        oldest = ".".join(map(str, package.oldest))
        state, detail = "mismatched", f"{version} is too old: at least {oldest} is required"
    elif conflict := _conflict(package.name, version, version_of):
        state, (detail, remedy) = "mismatched", conflict
    elif outcome.error is not None:
        state, detail = "broken", f"{version} cannot be imported: {outcome.error}"
        remedy = f"reinstall it: {package.install}"
    elif package.step == "openvino":
        detail = f"{version}, devices {', '.join(outcome.value) or 'none'}"
    return Component(
        package.name, package.needed_for, state, detail, "" if state == "usable" else remedy
    )


def _conflict(name: str, version: str, version_of: VersionOf) -> tuple[str, str] | None:
    """Why this package does not work with another installed package, and the remedy."""
    if name == "optimum-intel":
        other = version_of("transformers")
        if other is not None and release(version)[:2] == (2, 2) and release(other) >= (5, 6):
            return f"{version} needs transformers < 5.6, but {other} is installed", _OPENVINO
    if name in {"openvino-tokenizers", "openvino-genai"}:
        other = version_of("openvino")
        if other is not None and release(version)[:3] != release(other)[:3]:
            matching = ".".join(map(str, release(other)[:3]))
            return (
                f"{version} does not match openvino {other}: their C++ interfaces differ",
                f"pip install '{name}=={matching}.*'",
            )
    return None


def _torchvision(outcomes: dict[str, Outcome], version_of: VersionOf) -> list[Component]:
    """Reported only if it is broken: we do not need it, but Transformers imports it."""
    outcome, version = outcomes.get("import torchvision", Outcome()), version_of("torchvision")
    if version is None or outcome.error is None:
        return []
    detail = f"{version} does not match this torch and breaks Transformers: {outcome.error}"
    remedy = "pip uninstall torchvision (text models do not need it)"
    return [Component("torchvision", "nothing", "broken", detail, remedy)]


def _ipex(outcomes: dict[str, Outcome], version_of: VersionOf) -> Component:
    name, use, version = "IPEX", "backend.name=ipex", version_of(_IPEX)
    archived = "archived, and slower than the native backend"
    if version is None:
        return Component(name, use, "missing", f"not installed; {archived}", "")
    if mismatch := _ipex_mismatch(version_of):
        matching = ".".join(map(str, release(version)[:2]))
        remedy = f"pip uninstall {_IPEX}, or install it in an environment with torch {matching}"
        return Component(name, use, "mismatched", mismatch, remedy)
    error = outcomes[f"import {_IPEX}"].error
    if error is not None:
        remedy = f"pip uninstall {_IPEX}: it is {archived}"
        return Component(name, use, "broken", f"{version} cannot be imported: {error}", remedy)
    return Component(name, use, "usable", f"{version}; {archived}", "")


def _ipex_mismatch(version_of: VersionOf) -> str | None:
    version, torch = version_of(_IPEX), version_of("torch")
    if version is None or torch is None or release(version)[:2] == release(torch)[:2]:
        return None
    matching = ".".join(map(str, release(version)[:2]))
    return f"{version} is built for torch {matching}, but {torch} is installed"


def _oneccl(outcomes: dict[str, Outcome], version_of: VersionOf) -> Component:
    outcome, version = outcomes["oneccl"], version_of("oneccl")
    problem, name, use = outcome.value or outcome.error, "oneCCL", "several ranks"
    if problem is None:
        return Component(name, use, "usable", version or "from a oneAPI installation", "")
    # distributed.oneccl.library ends its errors with how to install oneCCL.
    detail, install, rest = problem.partition(": install")
    remedy = f"install{rest}" if install else "pip install oneccl==2022.1.2"
    if version is None and "not found" in problem:
        return Component(name, use, "missing", "not installed; gloo is used instead", remedy)
    state: State = "mismatched" if version not in (None, "2022.1.2") else "broken"
    return Component(name, use, state, f"{version or ''} {detail}".strip(), remedy)


def _mpi() -> Component:
    name, use = "MPI", "launch"
    try:
        program = commands.find("mpirun")
        flavour = commands.mpi_flavour(program)
    except EnvironmentProblem as error:
        text = str(error)
        if "not found" in text:
            remedy = text.partition(": ")[2]
            detail = "there is no mpirun; on a single host torchrun works, too"
            return Component(name, use, "missing", detail, remedy)
        remedy = "put the mpirun of Intel MPI, Open MPI or MPICH first on PATH"
        return Component(name, use, "broken", text, remedy)
    return Component(name, use, "usable", f"{flavour}, {program}", "")


def _cuda(build: dict[str, Any] | None) -> Component:
    name, use = "CUDA", "backend.name=cuda"
    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
    if build is None:
        return Component(name, use, "missing", "unknown without torch", "")
    if build["devices"]:
        return Component(name, use, "usable", f"{build['cuda']}, {build['devices'][0]}", "")
    if driver and build["cuda"] is None:
        remedy = "to use the GPU, install the CUDA build of torch"
        detail = "there is a GPU driver, but this torch is a CPU build"
        return Component(name, use, "mismatched", detail, remedy)
    if driver:
        remedy = "compare `nvidia-smi` with the CUDA version that torch was built for"
        detail = f"torch is built for CUDA {build['cuda']}, but sees no device"
        return Component(name, use, "mismatched", detail, remedy)
    if build["cuda"] is not None:
        detail = f"no GPU; this torch is built for CUDA {build['cuda']} (3 GB more on disk)"
        return Component(name, use, "missing", detail, "")
    return Component(name, use, "missing", "no GPU; this torch is a CPU build", "")
