"""Examines this machine: collects the facts and derives the findings from them."""

import os
import platform
import socket
from dataclasses import dataclass

from intel_ft import __version__
from intel_ft.doctor import (
    findings_machine,
    findings_software,
    gemm_kernels,
    host,
    instructions,
    runtime,
    software,
)
from intel_ft.doctor.findings import Finding, ranked
from intel_ft.doctor.gemm_kernels import DTYPES, ExecutedKernels
from intel_ft.doctor.host import Host
from intel_ft.doctor.instructions import Instructions
from intel_ft.doctor.runtime import Runtime
from intel_ft.doctor.software import Component
from intel_ft.doctor.step_runner import NOT_TRIED, run_steps
from intel_ft.versions import installed

_COMPUTE_STEPS = ("torch", "backend", "threads", *DTYPES, "registers", "openmp", "bandwidth")
_TIMEOUT = 120.0  # seconds without an answer from a step


@dataclass(frozen=True)
class Facts:
    """Everything observed. `token`: whether there is a Hugging Face token; None if unknown."""

    name: str
    python: str
    intel_ft: str
    host: Host
    instructions: Instructions
    executed: ExecutedKernels
    runtime: Runtime
    software: tuple[Component, ...]
    token: bool | None


@dataclass(frozen=True)
class Diagnosis:
    """Facts, and the findings that follow from them."""

    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether there is an error among the findings."""
        return any(finding.level == "error" for finding in self.findings)


def examine() -> Diagnosis:
    """Examine this machine; takes about 15 seconds."""
    machine, isa = host.read(), instructions.read()
    before = host.throttled()
    # Packages must not use the network while they are imported.
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    verbose = offline | {"ONEDNN_VERBOSE": "1"}
    computed, onednn_report = run_steps(_COMPUTE_STEPS, verbose, _TIMEOUT)
    after = host.throttled()
    if computed["torch"].error is not None:  # then the other steps fail for the same reason
        computed = dict.fromkeys(_COMPUTE_STEPS, NOT_TRIED) | {"torch": computed["torch"]}
    imported, _ = run_steps(software.steps_to_run(installed), offline, _TIMEOUT)
    outcomes = computed | imported
    throttled = None if before is None or after is None else after - before
    facts = Facts(
        name=socket.gethostname(),
        python=platform.python_version(),
        intel_ft=__version__,
        host=machine,
        instructions=isa,
        executed=gemm_kernels.read(computed, onednn_report, machine, isa, throttled),
        runtime=runtime.read(outcomes),
        software=tuple(software.read(outcomes, installed)),
        token=imported["token"].value,
    )
    return Diagnosis(facts, tuple(ranked(findings(facts))))


def findings(facts: Facts) -> list[Finding]:
    """All findings that follow from these facts."""
    return [
        *findings_software.of_software(list(facts.software)),
        *findings_machine.of_execution(facts.instructions, facts.executed, busy=facts.host.busy),
        *findings_machine.of_limits(facts.host),
        *findings_machine.of_load_and_clock(facts.host, facts.executed),
        *findings_software.of_runtime(facts.runtime, facts.host),
        *findings_software.of_token(facts.token),
    ]
