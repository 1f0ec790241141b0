"""Differences between hosts, from answers in the form of the real ones; and their text."""

import copy
import re

from intel_ft.doctor import hosts, text


def answer(name, **more):
    """An answer with a few facts, in the form of the real ones."""
    facts = {
        "name": name,
        "python": "3.11.7",
        "intel_ft": "0.1.0",
        "host": {"cpu": "Some CPU", "cores": 56, "load": len(name) * 0.1, "nodes": [128.0, 128.0]},
        "executed": {
            "threads": 56,
            "bandwidth": 200.0,
            "throttled": len(name),
            "products": [{"dtype": "int8", "kernel": "amx", "rate": 100.0, "error": None}],
        },
        "software": [{"name": "torch", "state": "usable", "detail": "2.13.0", "remedy": ""}],
    }
    note = {"level": "note", "seen": "no token", "do": "hf auth login"}
    found = {"time": 1000.0, "diagnosis": {"facts": facts, "findings": [note]}}
    for path, value in more.items():
        *folders, last = path.split("__")
        inner = found["diagnosis"]["facts"]
        for folder in folders:
            inner = inner[int(folder) if folder.isdigit() else folder]
        inner[last] = value
    return found


def findings_of(comparison):
    return [(finding.level, finding.seen) for finding in comparison.findings]


def test_hosts_that_are_alike():
    """Load, throttling and names may differ; rates within 25 % count as equal."""
    found = hosts.compare(
        [answer("node10", executed__bandwidth=230.0), answer("n1"), answer("n2")], []
    )
    assert found.differences == {} and found.findings == () and not found.failed
    shown = "\n".join(text.comparison_lines(found))
    assert "The hosts do not differ." in shown
    assert shown.count("NOTE     all hosts: no token") == 1


def test_differences_that_launch_rejects():
    found = hosts.compare([answer("n1"), answer("n2", software__0__detail="2.8.0")], [])
    assert found.differences == {"software.torch": {"2.13.0": ["n1"], "2.8.0": ["n2"]}}
    ((level, seen),) = findings_of(found)
    assert level == "error" and "software.torch" in seen and "launch" in seen
    assert found.failed


def test_differences_that_launch_accepts():
    """The name torchvision starts with torch."""
    answers = [answer("n1"), answer("n2")]
    for found, version in zip(answers, ("0.26", "0.27"), strict=True):
        vision = {"name": "torchvision", "state": "usable", "detail": version, "remedy": ""}
        found["diagnosis"]["facts"]["software"].append(vision)
    compared = hosts.compare(answers, [])
    ((level, seen),) = findings_of(compared)
    assert level == "warning" and "software.torchvision" in seen and not compared.failed


def test_hosts_with_the_same_name():
    found = hosts.compare([answer("vm"), answer("n1"), answer("vm", host__cores=28)], [])
    assert list(found.hosts) == ["n1", "vm", "vm (2)"]
    assert found.differences["host.cores"] == {"56": ["n1", "vm"], "28": ["vm (2)"]}
    assert (
        "warning",
        "2 hosts are named vm: logs and errors cannot tell them apart",
    ) in findings_of(found)


def test_a_host_that_is_slower_or_smaller():
    slow = answer("n3", executed__products__0__rate=50.0, host__cores=28)
    found = hosts.compare([answer("n1"), answer("n2"), slow], [])
    assert found.differences["executed.products.int8.rate"] == {"100": ["n1", "n2"], "50": ["n3"]}
    assert found.differences["host.cores"] == {"56": ["n1", "n2"], "28": ["n3"]}
    ((level, seen),) = findings_of(found)
    assert level == "warning" and "executed.products.int8.rate" in seen and not found.failed
    lines = text.comparison_lines(found)
    assert [line.split() for line in lines if "n3" in line][1] == ["28", "n3"]


def test_clocks_that_are_apart():
    late = answer("n2") | {"time": 1045.0}
    ((level, seen),) = findings_of(hosts.compare([answer("n1"), late], []))
    assert level == "error" and "clocks of n1 and n2 are 45 s apart" in seen


def test_an_error_on_one_host_is_an_error_of_the_comparison():
    broken = copy.deepcopy(answer("n2"))
    broken["diagnosis"]["findings"].insert(0, {"level": "error", "seen": "torch: x", "do": "y"})
    found = hosts.compare([answer("n1"), broken], [])
    assert found.failed
    lines = text.comparison_lines(found)
    assert lines.index("ERROR    n2: torch: x") < lines.index("NOTE     all hosts: no token")


def test_hosts_that_were_started_and_did_not_answer():
    (finding,) = hosts.missing([], ("n1", "n2"), [answer("n1")])
    assert finding.level == "error" and "intel-ft doctor" in finding.do
    assert re.search(r"2 hosts.* 1 answered \(n1\)", finding.seen)
