"""A short program on every host, each answering with a line of JSON; called from
distributed.launch.run and insight.doctor.hosts.
"""

import json
import os
import subprocess
from typing import Any

from intel_ft.distributed.launch.commands import command
from intel_ft.distributed.launch.job_spec import Job
from intel_ft.errors import EnvironmentProblem


def answers(job: Job, via: str, seconds: float) -> list[dict[str, Any]]:
    """What the job's program said on each host, in any order; a host that said nothing is not in
    it. Raises EnvironmentProblem where the launcher failed or `seconds` have passed.
    """
    start = command(job, via)
    hosts = len(job.hosts)
    try:
        done = subprocess.run(
            start.arguments,
            check=False,
            env=os.environ | start.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(
            f"{start.launcher} started nothing on {hosts} hosts in {seconds:g} s: check that "
            "they can reach each other"
        ) from None
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode and len(found) < hosts:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        text = " ".join(said[-1:])[:200]
        raise EnvironmentProblem(f"{start.launcher} failed on the hosts: {text}")
    return found
