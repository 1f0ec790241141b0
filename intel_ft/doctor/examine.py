"""One look at this machine: facts, then findings; called from cli.doctor, and as `python -m
intel_ft.doctor` on each host by insight.doctor.hosts.
"""

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

_COMPUTE = ("torch", "backend", "threads", *DTYPES, "openmp", "bandwidth")
_SECONDS = 120.0  # that a process may be silent


@dataclass(frozen=True)
class Facts:
    """All that was seen. `token`: whether one for the Hub is present, None where nobody can say."""

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
    """Facts and what follows from them."""

    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether there is an error among the findings."""
        return any(finding.level == "error" for finding in self.findings)


def examine() -> Diagnosis:
    """Look at this machine; takes some 15 seconds."""
    machine, isa = host.read(), instructions.read()
    before = host.throttled()
    # No package may look for anything on the network while it is tried.
    quiet = os.environ | {"HF_HUB_OFFLINE": "1"}
    computed, verbose = run_steps(_COMPUTE, quiet | {"ONEDNN_VERBOSE": "1"}, _SECONDS)
    after = host.throttled()
    if computed["torch"].error is not None:  # which is then the error of all
        computed = dict.fromkeys(_COMPUTE, NOT_TRIED) | {"torch": computed["torch"]}
    imported, _ = run_steps(software.steps_to_run(installed), quiet, _SECONDS)
    outcomes = computed | imported
    meanwhile = None if before is None or after is None else after - before
    facts = Facts(
        name=socket.gethostname(),
        python=platform.python_version(),
        intel_ft=__version__,
        host=machine,
        instructions=isa,
        executed=gemm_kernels.read(computed, verbose, machine, isa, meanwhile),
        runtime=runtime.read(outcomes),
        software=tuple(software.read(outcomes, installed)),
        token=imported["token"].value,
    )
    return Diagnosis(facts, tuple(ranked(findings(facts))))


def findings(facts: Facts) -> list[Finding]:
    """Everything that is to be said of these facts."""
    return [
        *findings_software.of_software(list(facts.software)),
        *findings_machine.of_execution(facts.instructions, facts.executed, busy=facts.host.busy),
        *findings_machine.of_limits(facts.host),
        *findings_machine.of_load_and_clock(facts.host, facts.executed),
        *findings_software.of_runtime(facts.runtime, facts.host),
        *findings_software.of_token(facts.token),
    ]
