"""Checks before a run starts: each host reports, and the launching host compares the reports.

As a program it prints the report of its host.
"""

import hashlib
import json
import platform
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from intel_ft.errors import EnvironmentProblem, UserError
from intel_ft.host.procfs import kernel_text
from intel_ft.versions import installed

_PACKAGES = ("intel_ft", "torch", "transformers", "peft", "accelerate", "oneccl")
MAX_CLOCK_SKEW = 30.0  # seconds: users compare logs and file times of several hosts
_CONNECT_TIMEOUT = 10  # seconds for a host to answer
_HASHED_BYTES = 2**16  # at each end of a weight file
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # one for each start of a kernel

MUST_MATCH = {
    "python": "Python",
    "packages": "package versions",
    "config": "config file",
    "base": "base model",
}


def unreachable_hosts(hosts: tuple[str, ...], ssh: str) -> list[str]:
    """The unreachable hosts, each as `name (reason)`."""

    def problem(host: str) -> str | None:
        command = [ssh, "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_TIMEOUT}"]
        try:
            done = subprocess.run(
                [*command, host, "true"],
                check=False,
                capture_output=True,
                text=True,
                timeout=2 * _CONNECT_TIMEOUT,
            )
        except FileNotFoundError:
            raise EnvironmentProblem(
                f"{ssh} was not found: install an ssh client, or name another program with --ssh"
            ) from None
        except subprocess.TimeoutExpired:
            return f"{host} (no answer in {2 * _CONNECT_TIMEOUT} s)"
        if done.returncode == 0:
            return None
        last = done.stderr.strip().splitlines()[-1:] or [f"{ssh} exit code {done.returncode}"]
        return f"{host} ({last[0][:100]})"

    with ThreadPoolExecutor(16) as pool:
        return [reason for reason in pool.map(problem, hosts) if reason is not None]


def report(config_file: Path, overrides: list[str]) -> dict[str, Any]:
    """The facts of this host that `compare` needs, as plain values."""
    from intel_ft import config as configuration
    from intel_ft.host import topology

    problem, config, base = None, None, None
    try:
        settings = configuration.load(config_file, overrides)
        config = hashlib.sha256(settings.to_yaml().encode()).hexdigest()[:16]
        base = fingerprint(settings.model.name_or_path)
    except UserError as error:
        problem = str(error)
    host = topology.read()
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return {
        "host": platform.node(),
        "boot": kernel_text(_BOOT_ID).strip(),
        "problem": problem,
        "python": platform.python_version(),
        "packages": packages(),
        "config": config,
        "base": base,
        "time": time.time(),
        "cores": host.usable,
        "nodes": len(host.nodes),
        "port": port,
    }


def packages() -> dict[str, str | None]:
    """The package versions that must be the same on all hosts."""
    return {name: installed(name) for name in _PACKAGES}


def fingerprint(name_or_path: str) -> str:
    """A hash of a local model folder: the size, beginning and end of each file.

    A Hub id is returned unchanged.
    """
    from intel_ft.assets import resolve

    folder = Path(resolve(name_or_path))
    if not folder.is_dir():
        return name_or_path
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith("."):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            file.seek(max(0, size - _HASHED_BYTES))
            digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()[:16]


def compare(reports: list[dict[str, Any]], hosts: int) -> None:
    """Raise UserError or EnvironmentProblem for the first problem or difference."""
    if len(reports) != hosts:
        names = ", ".join(report["host"] for report in reports)
        raise EnvironmentProblem(
            f"{hosts} hosts were started, but only {len(reports)} reported ({names}): run"
            " `intel-ft doctor` on the others"
        )
    for report in reports:
        if report["problem"]:
            raise UserError(f"on {report['host']}: {report['problem']}")
    seen: set[tuple[str, str]] = set()
    for report in reports:
        host = (report["host"], report["boot"])
        if host in seen and report["boot"]:
            raise UserError(
                f"two lines of the host file are the same host, {host[0]}: give it one line, with "
                "the number of ranks, such as `name:2`"
            )
        seen.add(host)
    first = reports[0]
    for key, what in MUST_MATCH.items():
        for other in reports[1:]:
            if other[key] != first[key]:
                raise EnvironmentProblem(
                    f"{first['host']} and {other['host']} do not have the same {what}: "
                    f"{_difference(first[key], other[key])}"
                )
    latest = max(reports, key=lambda report: float(report["time"]))
    earliest = min(reports, key=lambda report: float(report["time"]))
    apart = latest["time"] - earliest["time"]
    if apart > MAX_CLOCK_SKEW:
        raise EnvironmentProblem(
            f"the clocks of {earliest['host']} and {latest['host']} are {apart:.0f} s apart: "
            "synchronize them with NTP"
        )


def _difference(first: Any, other: Any) -> str:
    if not isinstance(first, dict):
        return f"{first} and {other}"
    return ", ".join(
        f"{key} {first[key]} and {other[key]}" for key in first if first[key] != other[key]
    )


if __name__ == "__main__":
    # One write, so that the lines of several hosts are not interleaved.
    sys.stdout.write(json.dumps(report(Path(sys.argv[1]), sys.argv[2:])) + "\n")
