"""A diagnosis as one screen of text; called from cli.doctor."""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from intel_ft.doctor.examine import Diagnosis, Facts
from intel_ft.doctor.findings import Finding, ranked
from intel_ft.doctor.hosts import Comparison

_WIDTH = 80  # of a list that goes on in the next line


def lines(diagnosis: Diagnosis) -> list[str]:
    """Facts in groups, then findings, the worst first."""
    facts = diagnosis.facts
    rows = [*_machine(facts), *_compute(facts), *_runtime(facts), *_software(facts)]
    width = max(len(name) for name, _ in rows)
    return [*(f"{name:<{width}}  {text}" for name, text in rows), "", *told(diagnosis.findings)]


def compared(found: Comparison) -> list[str]:
    """What differs between hosts, then findings: of the comparison, and of hosts, each once."""
    text = [f"{len(found.hosts)} hosts: {', '.join(found.hosts)}", ""]
    for fact, values in found.differences.items():
        text.append(fact)
        text += [f"    {value:<40} {', '.join(names)}" for value, names in values.items()]
    if not found.differences:
        text.append("They do not differ.")
    on: dict[Finding, list[str]] = {}
    for name, host in found.hosts.items():
        for finding in host["findings"]:
            on.setdefault(Finding(**finding), []).append(name)
    of_hosts = [
        replace(finding, seen=f"{_where(names, found)}: {finding.seen}")
        for finding, names in on.items()
    ]
    return [*text, "", *told(ranked([*found.findings, *of_hosts]))]


def _where(names: list[str], found: Comparison) -> str:
    return "all" if len(names) == len(found.hosts) else ", ".join(names)


def told(findings: Iterable[Finding]) -> Iterator[str]:
    """Two lines a finding: what was seen, what to do."""
    for finding in findings:
        yield f"{finding.level.upper():<8} {finding.seen}"
        if finding.do:
            yield f"{'':<8}   -> {finding.do}"


def _machine(facts: Facts) -> Iterator[tuple[str, str]]:
    host, clock = facts.host, facts.host.clock
    yield "host", f"{facts.name}; intel-ft {facts.intel_ft}, Python {facts.python}"
    yield "CPU", f"{host.cpu}{' (virtual machine)' if host.virtual else ''}"
    by = host.quota_by.removeprefix("the ")
    limit = "" if host.quota is None else f", {by} allows {host.quota:g}"
    shape = (
        _count(host.sockets, "socket"),
        _count(max(1, len(host.nodes)), "NUMA node"),
        f"{_count(host.threads_per_core, 'thread')} a core",
    )
    cores = f"{host.cores} of {host.machine_cores}{limit}"
    yield "cores", f"{cores}; {', '.join(shape)}; load {host.load:.1f}"
    speeds = {"now": clock.now, "base": clock.base, "highest": clock.highest}
    said = [f"{value:.2f} GHz {name}" for name, value in speeds.items() if value is not None]
    if clock.governor:
        said.append(f"governor {clock.governor}")
    said.append(
        "throttling not reported"
        if clock.throttled is None
        else f"throttled {clock.throttled} times since start"
    )
    yield "clock", ", ".join(said)
    limit = "" if host.memory_limit is None else f", control group allows {host.memory_limit:.1f}"
    moved, why = facts.executed.bandwidth, facts.executed.bandwidth_error
    rate = f"; rate not measured ({why})" if moved is None else f"; {moved:,.1f} GB/s"
    yield "memory", f"{host.memory:.1f} GiB{limit}, {host.available:.1f} available{rate}"
    disks = [
        f"{folder} may not be entered" if free is None else f"{free:,.1f} GiB free for {folder}"
        for folder, free in host.disk.items()
    ]
    yield "disk", ", ".join(disks)


def _compute(facts: Facts) -> Iterator[tuple[str, str]]:
    isa, executed = facts.instructions, facts.executed
    yield "advertised", " ".join(isa.advertised) or "none that matters here"
    tiles = "no tiles to ask for" if isa.tiles is None else f"AMX tiles {isa.tiles}"
    yield "permitted", tiles + "".join(f", {n}={v}" for n, v in isa.limits.items())
    if executed.onednn is not None:
        yield "oneDNN", f"{executed.onednn}: {executed.isa}"
    for product in executed.products:
        if product.error is not None:
            yield product.dtype, product.error
            continue
        ran = product.kernel or ("MKL" if product.dtype == "float32" else "not oneDNN's")
        expected = "" if product.expected is None else f", {product.expected:,.0f} expected"
        yield product.dtype, f"{product.rate:,.0f} G/s{expected}; ran {ran}"


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
    for state, said in parts.items():
        lines = textwrap.wrap("; ".join(said), _WIDTH, break_on_hyphens=False)
        yield from zip([state, *[""] * len(lines)], lines, strict=False)
    yield "Hub token", {True: "present", False: "none", None: "unknown"}[facts.token]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
