"""`doctor --hosts`: the diagnosis of every host, and what differs; called from cli.doctor."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intel_ft.distributed.launch import preflight
from intel_ft.distributed.launch.job_spec import Job, read_hostfile
from intel_ft.distributed.launch.run_on_hosts import answers
from intel_ft.doctor.findings import Finding, ranked
from intel_ft.errors import EnvironmentProblem

_SECONDS = 400.0  # several steps may be silent, 120 s each
_LIKE = 1.25  # by which measured rates of equal hosts may differ

# Different on equal hosts, too, or no matter.
_OWN = ("name", "host.load", "host.available", "host.disk", "host.clock.now", "host.shared_memory")
_OWN_ENDS = ("throttled", ".state", ".reason", ".error", ".remedy", ".needed_for")
_RATES = (".rate", ".bandwidth")
# `launch` refuses hosts that differ in these (distributed.launch.preflight).
_MUST_MATCH = {
    *("python", "intel_ft"),
    *(f"software.{name}" for name in ("torch", "transformers", "peft", "accelerate", "oneCCL")),
}


@dataclass(frozen=True)
class Comparison:
    """`hosts`: each one's facts and findings, as JSON. `differences`: what is not alike, as
    {fact: {value: hosts}}. `findings`: of the comparison alone.
    """

    hosts: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, list[str]]]
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether there is an error, on a host or between them."""
        levels = [finding.level for finding in self.findings]
        levels += [found["level"] for host in self.hosts.values() for found in host["findings"]]
        return "error" in levels


def examine(hostfile: Path, ssh: str, mpirun: str | None) -> Comparison:
    """Run the doctor on every host of the file that can be reached, through mpirun, and compare.
    Raises UserError for the file, EnvironmentProblem where nothing could be started.
    """
    names, _ = read_hostfile(hostfile)
    problems = preflight.reach(names, ssh)
    gone = {problem.partition(" ")[0] for problem in problems}
    left = tuple(name for name in names if name not in gone)
    if not left:
        raise EnvironmentProblem(f"cannot be reached: {', '.join(problems)}")
    program = (sys.executable, "-m", "intel_ft.doctor")
    said = answers(Job(program, left, 1, "", ssh, mpirun), "mpirun", _SECONDS)
    if not said:
        raise EnvironmentProblem(f"none of {len(left)} hosts answered: see `intel-ft doctor` there")
    return compare(said, [*missing(problems, left, said)])


def compare(answers: list[dict[str, Any]], problems: list[Finding]) -> Comparison:
    """Each answer is {"time": seconds, "diagnosis": as JSON}, taken at about the same moment."""
    said: Counter[str] = Counter()
    hosts: dict[str, dict[str, Any]] = {}
    for answer in answers:
        name = answer["diagnosis"]["facts"]["name"]
        said[name] += 1
        hosts[name if said[name] == 1 else f"{name} ({said[name]})"] = answer["diagnosis"]
    differences = _differences({name: found["facts"] for name, found in hosts.items()})
    found = [*problems, *_namesakes(said), *_clocks(answers), *_unlike(differences)]
    return Comparison(dict(sorted(hosts.items())), differences, tuple(ranked(found)))


def missing(
    problems: list[str], asked: tuple[str, ...], said: list[dict[str, Any]]
) -> Iterator[Finding]:
    """Hosts with a problem, and those of `asked` that said nothing."""
    for problem in problems:
        yield Finding("error", f"cannot be reached: {problem}", "check its network, sshd and keys")
    if len(said) < len(asked):
        names = ", ".join(answer["diagnosis"]["facts"]["name"] for answer in said) or "none"
        yield Finding(
            "error",
            f"{len(asked)} hosts were started, {len(said)} answered ({names})",
            "run `intel-ft doctor` on the others",
        )


def _namesakes(said: Counter[str]) -> Iterator[Finding]:
    for name, count in said.items():
        if count > 1:
            yield Finding(
                "warning",
                f"{count} hosts are named {name}: logs and errors cannot tell them apart",
                "give each a name of its own (hostnamectl hostname NAME)",
            )


def _clocks(answers: list[dict[str, Any]]) -> Iterator[Finding]:
    by_time = sorted(answers, key=lambda answer: float(answer["time"]))
    apart = by_time[-1]["time"] - by_time[0]["time"]
    if apart > preflight.CLOCK:
        first, last = (by_time[n]["diagnosis"]["facts"]["name"] for n in (0, -1))
        seen = f"the clocks of {first} and {last} are {apart:.0f} s apart"
        yield Finding("error", f"{seen}: launch refuses", "set them by NTP")


def _unlike(differences: dict[str, dict[str, list[str]]]) -> Iterator[Finding]:
    must = [fact for fact in differences if fact in _MUST_MATCH]
    if must:
        yield Finding(
            "error",
            f"hosts differ in {', '.join(must)}: launch refuses",
            "install the same versions on all, or share one environment between them",
        )
    if others := [fact for fact in differences if fact not in must]:
        yield Finding(
            "warning",
            f"hosts differ in {', '.join(others)}: every step waits for the slowest",
            "use hosts that are alike, or find out why these are not",
        )


def _differences(facts: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[str]]]:
    flat = {name: dict(_flat("", found)) for name, found in facts.items()}
    found = {}
    for fact in dict.fromkeys(fact for values in flat.values() for fact in values):
        if fact.startswith(_OWN) or fact.endswith(_OWN_ENDS):
            continue
        values = {name: flat[name].get(fact) for name in sorted(flat)}
        if not _alike(fact, list(values.values())):
            by_value: dict[str, list[str]] = {}
            for name, value in values.items():
                text = f"{value:.4g}" if isinstance(value, float) else str(value)
                by_value.setdefault(text, []).append(name)
            found[fact.removesuffix(".detail")] = by_value
    return found


def _alike(fact: str, values: list[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) < len(values):
        return all(value == values[0] for value in values)
    factor = _LIKE if fact.endswith(_RATES) else 1.01
    return max(numbers) <= factor * min(numbers)


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(dotted path, plain value) of everything inside; items of a list go by their names."""
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
