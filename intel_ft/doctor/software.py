"""Facts of the software: each package and program as usable, missing, mismatched or broken, with
the remedy; called from insight.doctor.examine.
"""

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

Find = Callable[[str], str | None]
"""The version of a distribution, None where it is not installed."""

_IPEX = "intel_extension_for_pytorch"
_OPENVINO = "pip install 'intel_ft[openvino]'"
_QLORA = "pip install 'intel_ft[qlora]'"


@dataclass(frozen=True)
class Component:
    """A package or program: what it is needed for ("every run", where nothing goes without it),
    the version or more about it, and what to do where it is not usable.
    """

    name: str
    needed_for: str
    state: State
    detail: str
    remedy: str


@dataclass(frozen=True)
class Package:
    """A distribution, the oldest version that will do, and the step that tries it, if one does."""

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


def steps_to_run(find: Find) -> list[str]:
    """The steps worth trying: packages that `find` finds, and IPEX only beside the torch it is
    made for, since elsewhere its import ends the process.
    """
    found = [
        package.step
        for package in PACKAGES[1:]
        if package.step is not None and find(package.name) is not None
    ]
    if find("torchvision") is not None:
        found.append("import torchvision")
    if _ipex_mismatch(find) is None and find(_IPEX) is not None:
        found.append(f"import {_IPEX}")
    return ["token", "oneccl", *found]


def read(outcomes: dict[str, Outcome], find: Find) -> list[Component]:
    """All components, from the outcomes of their steps and from what `find` says is installed."""
    found = [_package(package, outcomes, find) for package in PACKAGES]
    found += [*_torchvision(outcomes, find), _ipex(outcomes, find), _oneccl(outcomes, find)]
    return [*found, _mpi(), _cuda(outcomes["torch"].value)]


def release(text: str) -> tuple[int, ...]:
    """(2, 13, 0) for 2.13.0+cpu."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _package(package: Package, outcomes: dict[str, Outcome], find: Find) -> Component:
    outcome = outcomes.get(package.step or "", Outcome())
    has = find(package.name)
    if has is None and isinstance(outcome.value, dict):  # torch that was built here
        has = str(outcome.value["version"])
    state: State = "usable"
    detail, remedy = has or "", package.install
    if has is None:
        state, detail = "missing", "not installed"
    elif release(has) < package.oldest:
        oldest = ".".join(map(str, package.oldest))
        state, detail = "mismatched", f"{has}, but {oldest} is the oldest that will do"
    elif reason := _contradicts(package.name, has, find):
        state, detail, remedy = "mismatched", reason[0], reason[1]
    elif outcome.error is not None:
        state, detail = "broken", f"{has} cannot be imported: {outcome.error}"
        remedy = f"install it anew: {package.install}"
    elif package.step == "openvino":
        detail = f"{has}, devices {', '.join(outcome.value) or 'none'}"
    return Component(
        package.name, package.needed_for, state, detail, "" if state == "usable" else remedy
    )


def _contradicts(name: str, has: str, find: Find) -> tuple[str, str] | None:
    """What another installed package makes of this one, and what to do."""
    if name == "optimum-intel":
        other = find("transformers")
        if other is not None and release(has)[:2] == (2, 2) and release(other) >= (5, 6):
            return f"{has} needs transformers < 5.6, here is {other}", _OPENVINO
    if name in {"openvino-tokenizers", "openvino-genai"}:
        other = find("openvino")
        if other is not None and release(has)[:3] != release(other)[:3]:
            wanted = ".".join(map(str, release(other)[:3]))
            return (
                f"{has} beside openvino {other}: their C++ interfaces differ",
                f"pip install '{name}=={wanted}.*'",
            )
    return None


def _torchvision(outcomes: dict[str, Outcome], find: Find) -> list[Component]:
    """Only where it is in the way: nothing here needs it, and Transformers imports it."""
    outcome, has = outcomes.get("import torchvision", Outcome()), find("torchvision")
    if has is None or outcome.error is None:
        return []
    detail = f"{has} does not fit this torch, and breaks Transformers: {outcome.error}"
    remedy = "pip uninstall torchvision (text models do not need it)"
    return [Component("torchvision", "nothing", "broken", detail, remedy)]


def _ipex(outcomes: dict[str, Outcome], find: Find) -> Component:
    name, use, has = "IPEX", "backend.name ipex", find(_IPEX)
    if has is None:
        return Component(name, use, "missing", "not installed; archived, native is faster", "")
    if mismatch := _ipex_mismatch(find):
        wanted = ".".join(map(str, release(has)[:2]))
        remedy = f"pip uninstall {_IPEX}, or give it an environment with torch {wanted}"
        return Component(name, use, "mismatched", mismatch, remedy)
    error = outcomes[f"import {_IPEX}"].error
    if error is not None:
        remedy = f"pip uninstall {_IPEX}: it is archived, native is faster"
        return Component(name, use, "broken", f"{has} cannot be imported: {error}", remedy)
    return Component(name, use, "usable", f"{has}; archived, native is faster", "")


def _ipex_mismatch(find: Find) -> str | None:
    has, torch = find(_IPEX), find("torch")
    if has is None or torch is None or release(has)[:2] == release(torch)[:2]:
        return None
    return f"{has} is made for torch {'.'.join(map(str, release(has)[:2]))}, here is {torch}"


def _oneccl(outcomes: dict[str, Outcome], find: Find) -> Component:
    outcome, has = outcomes["oneccl"], find("oneccl")
    why, name, use = outcome.value or outcome.error, "oneCCL", "several ranks"
    if why is None:
        return Component(name, use, "usable", has or "of an oneAPI installation", "")
    detail, install, rest = why.partition(": install it")  # as distributed.oneccl.library says
    remedy = (install + rest).removeprefix(": ")
    if has is None and "not found" in why:
        return Component(name, use, "missing", "not installed; gloo instead", remedy)
    state: State = "mismatched" if has not in (None, "2022.1.2") else "broken"
    return Component(name, use, state, f"{has or ''} {detail}".strip(), remedy)


def _mpi() -> Component:
    name, use = "MPI", "launch"
    try:
        program = commands.find("mpirun")
        flavour = commands.mpi_flavour(program)
    except EnvironmentProblem as error:
        text = str(error)
        if "was not found" in text:
            remedy = text.partition(": ")[2]
            return Component(name, use, "missing", "no mpirun; torchrun on one host", remedy)
        remedy = "put the mpirun of Intel MPI, Open MPI or MPICH first on PATH"
        return Component(name, use, "broken", text, remedy)
    return Component(name, use, "usable", f"{flavour}, {program}", "")


def _cuda(build: dict[str, Any] | None) -> Component:
    name, use = "CUDA", "backend.name cuda"
    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
    if build is None:
        return Component(name, use, "missing", "torch does not say", "")
    if build["devices"]:
        return Component(name, use, "usable", f"{build['cuda']}, {build['devices'][0]}", "")
    if driver and build["cuda"] is None:
        remedy = "to use the GPU, install torch's CUDA build"
        return Component(name, use, "mismatched", "a GPU driver beside torch's CPU build", remedy)
    if driver:
        remedy = "compare `nvidia-smi` with the CUDA version that torch was built for"
        detail = f"torch is built for CUDA {build['cuda']}, but sees no device"
        return Component(name, use, "mismatched", detail, remedy)
    if build["cuda"] is not None:
        detail = f"no GPU; torch is built for CUDA {build['cuda']}, which takes 3 GB more disk"
        return Component(name, use, "missing", detail, "")
    return Component(name, use, "missing", "no GPU, and torch's CPU build", "")
