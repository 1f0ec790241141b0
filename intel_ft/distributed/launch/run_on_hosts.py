"""Running a short program on every host, which prints a line of JSON there."""

import json
import os
import subprocess
from typing import Any

from intel_ft.distributed.launch.commands import command
from intel_ft.distributed.launch.job_spec import Job
from intel_ft.errors import EnvironmentProblem


def run_on_hosts(job: Job, via: str, timeout: float) -> list[dict[str, Any]]:
    """The JSON that the job's program printed on each host, in any order.

    Hosts that printed nothing are missing from it. Raises EnvironmentProblem if the launcher fails
    or runs longer than `timeout` seconds.
    """
    launcher = command(job, via)
    try:
        done = subprocess.run(
            launcher.arguments,
            check=False,
            env=os.environ | launcher.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        hosts = ", ".join(job.hosts)[:200]
        raise EnvironmentProblem(
            f"{launcher.launcher} did not finish on {hosts} within {timeout:g} s: check that these "
            "hosts can connect to each other over ssh, and that no firewall is between them"
        ) from None
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode and len(reports) < len(job.hosts):
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        text = " ".join(lines[-1:])[:200]
        raise EnvironmentProblem(
            f"{launcher.launcher} failed on the hosts with exit code {done.returncode}: {text}"
        )
    return reports
