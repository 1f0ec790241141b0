"""Faults between two hosts under `launch`: the job ends in time, and no checkpoint is lost.

No process is left behind either. Faults of one host are in test_launch_walk and test_user_errors;
tools/fault_table.py runs all of them many times.
"""

import os
import sys
from pathlib import Path

import pytest
from support import hosts
from support.cluster_faults import suffer

from intel_ft.distributed.oneccl import why_not_usable

SCRIPTS = Path(sys.executable).parent
HEARTBEAT = 10
BOUND = 90  # the heartbeat, 20 s for the launcher to exit by itself, and slack for a slow machine
problem = hosts.why_not() or why_not_usable()
pytestmark = pytest.mark.skipif(problem is not None, reason=str(problem))


@pytest.mark.parametrize(
    "fault", ["link down in a step", "link down in a checkpoint", "SIGKILL the launcher"]
)
def test_a_fault_ends_the_job(fault, tmp_path):
    command = [
        SCRIPTS / "intel-ft",
        "launch",
        "config.yaml",
        f"backend.heartbeat_timeout={HEARTBEAT}",
    ]
    command += ["--hostfile", "hosts", "--ranks-per-host", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with hosts.cluster(tmp_path, 2) as cluster:
        outcome = suffer(fault, cluster, command, environment, BOUND)
    assert outcome.seconds is not None, outcome
    assert outcome.code != 0, outcome
    assert not outcome.lost, outcome
    assert outcome.empty is not None, outcome
