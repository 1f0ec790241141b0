"""`doctor --hosts`: the diagnosis of every host, and the differences between hosts."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft.distributed.launch import preflight
from intel_ft.distributed.launch.hostfile import read_hostfile
from intel_ft.distributed.launch.job_spec import Job
from intel_ft.distributed.launch.run_on_hosts import run_on_hosts
from intel_ft.doctor.findings import Finding, ranked
from intel_ft.errors import EnvironmentProblem
from intel_ft.plurals import count_of

_TIMEOUT = 400.0  # seconds: several steps may each take up to 120 s
_SIMILAR = 1.25  # measured rates of identical hosts differ by up to this factor

# Facts that differ between identical hosts, or that do not matter.
_IGNORED = (
    "name",
    "host.load",
    "host.available",
    "host.disk",
    "host.clock.now",
    "host.shared_memory",
)
_IGNORED_ENDINGS = ("throttled", ".state", ".reason", ".error", ".remedy", ".needed_for")
_RATES = (".rate", ".bandwidth")
# `launch` rejects hosts that differ in these (distributed.launch.preflight).
_MUST_MATCH = {
    *("python", "intel_ft"),
    *(f"software.{name}" for name in ("torch", "transformers", "peft", "accelerate", "oneCCL")),
}


@dataclass(frozen=True)
class Comparison:
    """The diagnoses of several hosts, and what differs between them.

    `hosts`: facts and findings of each host, as JSON. `differences`: {fact: {value: hosts}}.
    `findings`: those of the comparison, without the hosts' own.
    """

    hosts: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, list[str]]]
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether there is an error, on a host or between hosts."""
        levels = [finding.level for finding in self.findings]
        for host in self.hosts.values():
            levels += [finding["level"] for finding in host["findings"]]
        return "error" in levels


def examine(hostfile: Path, ssh: str, mpirun: str | None) -> Comparison:
    """Run the doctor on every reachable host of the file, through mpirun, and compare the hosts.

    Raises UserError for the file, EnvironmentProblem if the doctor cannot be started on any host.
    """
    names, _ = read_hostfile(hostfile)
    problems = preflight.unreachable_hosts(names, ssh)
    unreachable = {problem.partition(" ")[0] for problem in problems}
    reachable = tuple(name for name in names if name not in unreachable)
    if not reachable:
        raise EnvironmentProblem(f"no host can be reached: {', '.join(problems)}")
    program = (sys.executable, "-m", "intel_ft.doctor")
    diagnoses = run_on_hosts(Job(program, reachable, 1, "", ssh, mpirun), "mpirun", _TIMEOUT)
    if not diagnoses:
        raise EnvironmentProblem(
            f"no host answered, of {len(reachable)}: run `intel-ft doctor` on one of them"
        )
    return compare(diagnoses, [*missing(problems, reachable, diagnoses)])


def compare(diagnoses: list[dict[str, Any]], problems: list[Finding]) -> Comparison:
    """Compare hosts; `problems` become findings, too.

    diagnoses: of each host {"time": seconds, "diagnosis": as JSON}, taken at about the same moment.
    """
    counts: Counter[str] = Counter()
    hosts: dict[str, dict[str, Any]] = {}
    for answer in diagnoses:
        name = answer["diagnosis"]["facts"]["name"]
        counts[name] += 1
        hosts[name if counts[name] == 1 else f"{name} ({counts[name]})"] = answer["diagnosis"]
    differences = _differences({name: diagnosis["facts"] for name, diagnosis in hosts.items()})
    findings = [
        *problems,
        *_shared_names(counts),
        *_clocks(diagnoses),
        *_different(differences),
    ]
    return Comparison(dict(sorted(hosts.items())), differences, tuple(ranked(findings)))


def missing(
    problems: list[str], reachable: tuple[str, ...], diagnoses: list[dict[str, Any]]
) -> Iterator[Finding]:
    """Hosts that cannot be reached, and those of `reachable` that did not answer."""
    for problem in problems:
        yield Finding(
            "error", f"unreachable host: {problem}", "check its network, its sshd and your SSH keys"
        )
    if len(diagnoses) < len(reachable):
        names = ", ".join(answer["diagnosis"]["facts"]["name"] for answer in diagnoses) or "none"
        yield Finding(
            "error",
            f"the doctor was started on {count_of(len(reachable), 'host')}, but {len(diagnoses)} "
            f"answered ({names})",
            "run `intel-ft doctor` on the others",
        )


def _shared_names(counts: Counter[str]) -> Iterator[Finding]:
    for name, count in counts.items():
        if count > 1:
            yield Finding(
                "warning",
                f"{count} hosts are named {name}: logs and errors cannot tell them apart",
                "give each host its own name (hostnamectl hostname NAME)",
            )


def _clocks(diagnoses: list[dict[str, Any]]) -> Iterator[Finding]:
    by_time = sorted(diagnoses, key=lambda answer: float(answer["time"]))
    apart = by_time[-1]["time"] - by_time[0]["time"]
    if apart > preflight.MAX_CLOCK_SKEW:
        first, last = (by_time[n]["diagnosis"]["facts"]["name"] for n in (0, -1))
        seen = f"the clocks of {first} and {last} are {apart:.0f} s apart"
        yield Finding("error", f"{seen}: `launch` rejects that", "synchronize them with NTP")


def _different(differences: dict[str, dict[str, list[str]]]) -> Iterator[Finding]:
    must = [fact for fact in differences if fact in _MUST_MATCH]
    if must:
        yield Finding(
            "error",
            f"hosts differ in {', '.join(must)}: `launch` rejects that",
            "install the same versions on all hosts, or let them share one environment",
        )
    if others := [fact for fact in differences if fact not in must]:
        yield Finding(
            "warning",
            f"hosts differ in {', '.join(others)}: every step waits for the slowest host",
            "use identical hosts, or find out why these differ",
        )


def _differences(facts: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[str]]]:
    flat = {name: dict(_flat("", values)) for name, values in facts.items()}
    differences = {}
    for fact in dict.fromkeys(fact for values in flat.values() for fact in values):
        if fact.startswith(_IGNORED) or fact.endswith(_IGNORED_ENDINGS):
            continue
        values = {name: flat[name].get(fact) for name in sorted(flat)}
        if not _alike(fact, list(values.values())):
            by_value: dict[str, list[str]] = {}
            for name, value in values.items():
                text = f"{value:.4g}" if isinstance(value, float) else str(value)
                by_value.setdefault(text, []).append(name)
            differences[fact.removesuffix(".detail")] = by_value
    return differences


def _alike(fact: str, values: list[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) < len(values):
        return all(value == values[0] for value in values)
    factor = _SIMILAR if fact.endswith(_RATES) else 1.01
    return max(numbers) <= factor * min(numbers)


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, plain value) for everything in `value`; list items by their names."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        for item in value:
            inner = dict(item)
            name = inner.pop("name", None) or inner.pop("dtype", "")
            yield from _flat(f"{path}.{name}", inner)
    else:
        yield path, tuple(value) if isinstance(value, list) else value
