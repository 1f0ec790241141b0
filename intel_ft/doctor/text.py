"""A diagnosis as text for a terminal."""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from intel_ft.doctor.examine import Diagnosis, Facts
from intel_ft.doctor.findings import Finding, ranked
from intel_ft.doctor.hosts import Comparison
from intel_ft.plurals import count_of

_WIDTH = 80  # of a list that continues on the next line


def diagnosis_lines(diagnosis: Diagnosis) -> list[str]:
    """The facts in groups, then the findings, errors first."""
    facts = diagnosis.facts
    rows = [*_machine(facts), *_compute(facts), *_runtime(facts), *_software(facts)]
    width = max(len(name) for name, _ in rows)
    return [
        *(f"{name:<{width}}  {text}" for name, text in rows),
        "",
        *finding_lines(diagnosis.findings),
    ]


def comparison_lines(comparison: Comparison) -> list[str]:
    """What differs between hosts, then all findings; one that several hosts share appears once."""
    text = [f"{count_of(len(comparison.hosts), 'host')}: {', '.join(comparison.hosts)}", ""]
    for fact, values in comparison.differences.items():
        text.append(fact)
        text += [f"    {value:<40} {', '.join(names)}" for value, names in values.items()]
    if not comparison.differences:
        text.append("The hosts do not differ.")
    names_by_finding: dict[Finding, list[str]] = {}
    for name, host in comparison.hosts.items():
        for finding in host["findings"]:
            names_by_finding.setdefault(Finding(**finding), []).append(name)
    of_hosts = []
    for finding, names in names_by_finding.items():
        where = "all hosts" if len(names) == len(comparison.hosts) else ", ".join(names)
        of_hosts.append(replace(finding, seen=f"{where}: {finding.seen}"))
    return [*text, "", *finding_lines(ranked([*comparison.findings, *of_hosts]))]


def finding_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Two lines for each finding: what was observed, and what to do."""
    for finding in findings:
        yield f"{finding.level.upper():<8} {finding.seen}"
        if finding.do:
            yield f"{'':<8}   -> {finding.do}"


def _machine(facts: Facts) -> Iterator[tuple[str, str]]:
    host, clock = facts.host, facts.host.clock
    yield "host", f"{facts.name}; intel-ft {facts.intel_ft}, Python {facts.python}"
    yield "CPU", f"{host.cpu}{' (virtual machine)' if host.virtual else ''}"
    limited_by = host.quota_by.removeprefix("the ")
    limit = "" if host.quota is None else f", {limited_by} allows {host.quota:g}"
    shape = (
        count_of(host.sockets, "socket"),
        count_of(max(1, len(host.nodes)), "NUMA node"),
        f"{count_of(host.threads_per_core, 'thread')} per core",
    )
    cores = f"{host.cores} of {host.machine_cores}{limit}"
    yield "cores", f"{cores}; {', '.join(shape)}; load {host.load:.1f}"
    speeds = {"now": clock.now, "base": clock.base, "highest": clock.highest}
    parts = [f"{value:.2f} GHz {name}" for name, value in speeds.items() if value is not None]
    if clock.governor:
        parts.append(f"governor {clock.governor}")
    parts.append(
        "throttling not reported"
        if clock.throttled is None
        else f"throttled {clock.throttled} times since boot"
    )
    yield "clock", ", ".join(parts)
    limit = "" if host.memory_limit is None else f", control group allows {host.memory_limit:.1f}"
    bandwidth, error = facts.executed.bandwidth, facts.executed.bandwidth_error
    not_measured = f"bandwidth not measured ({error})"
    rate = f"; {not_measured if bandwidth is None else f'{bandwidth:,.1f} GB/s'}"
    yield "memory", f"{host.memory:.1f} GiB{limit}, {host.available:.1f} available{rate}"
    disks = [
        f"no access to {folder}" if free is None else f"{free:,.1f} GiB free for {folder}"
        for folder, free in host.disk.items()
    ]
    yield "disk", ", ".join(disks)


def _compute(facts: Facts) -> Iterator[tuple[str, str]]:
    isa, executed = facts.instructions, facts.executed
    yield "advertised", " ".join(isa.advertised) or "none that GEMMs can use"
    tiles = "this CPU has no AMX" if isa.tiles is None else f"AMX tiles {isa.tiles}"
    yield "permitted", tiles + "".join(f", {n}={v}" for n, v in isa.limits.items())
    if executed.onednn is not None:
        yield "oneDNN", f"{executed.onednn}: {executed.isa}"
    for gemm in executed.products:
        if gemm.error is not None:
            yield gemm.dtype, gemm.error
            continue
        kernel = gemm.kernel or ("MKL" if gemm.dtype == "float32" else "not oneDNN")
        expected = "" if gemm.expected is None else f", {gemm.expected:,.0f} expected"
        limit = ""
        if gemm.rate and gemm.registers:
            share = gemm.rate / gemm.registers
            limit = f", {share:.2f} of {gemm.registers:,.0f} by {gemm.instruction} from registers"
        yield gemm.dtype, f"{gemm.rate:,.0f} GOP/s{expected}{limit}; kernel {kernel}"


def _runtime(facts: Facts) -> Iterator[tuple[str, str]]:
    runtime = facts.runtime
    for decision in runtime.decisions:
        yield decision.name, f"{decision.value or '-'} ({decision.reason})"
    yield "OpenMP", ", ".join(Path(path).name for path in runtime.openmp) or "unknown"
    pages = f"transparent {runtime.transparent or 'unknown'}, {runtime.reserved:.1f} GiB reserved"
    yield "huge pages", pages
    if runtime.variables:
        yield "environment", " ".join(f"{n}={v}" for n, v in runtime.variables.items())


def _software(facts: Facts) -> Iterator[tuple[str, str]]:
    parts: dict[str, list[str]] = {}
    for part in facts.software:
        text = (
            f"{part.name} {part.detail}"
            if part.state == "usable"
            else f"{part.name} ({part.detail})"
        )
        parts.setdefault(part.state, []).append(text)
    for state, texts in parts.items():
        lines = textwrap.wrap("; ".join(texts), _WIDTH, break_on_hyphens=False)
        yield from zip([state, *[""] * len(lines)], lines, strict=False)
    yield "HF token", {True: "present", False: "none", None: "unknown"}[facts.token]
