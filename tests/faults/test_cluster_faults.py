"""Every fault of cluster_faults once, on two hosts under Intel MPI: the job ends within the bound,
no whole checkpoint is lost, and no process stays behind.
"""

import os
import sys
from pathlib import Path

import hosts
import pytest
from cluster_faults import FAULTS, suffer

from intel_ft.distributed.oneccl import why_not_usable

SCRIPTS = Path(sys.executable).parent
BOUND = 90
TIMEOUT = 30
problem = hosts.why_not() or why_not_usable()
pytestmark = pytest.mark.skipif(problem is not None, reason=str(problem))


def intel_mpi():
    """A run on both hosts. mpiexec.hydra, because mpirun is a script around it."""
    environment = {
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "I_MPI_ROOT": sys.prefix,
        "FI_TCP_IFACE": "eth0",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
        "OMP_NUM_THREADS": "1",
    }
    launcher = [SCRIPTS / "mpiexec.hydra", "-hosts", "node1,node2", "-ppn", "1", "-n", "2"]
    train = [SCRIPTS / "intel-ft", "train", "config.yaml", f"backend.timeout={TIMEOUT}"]
    return [*launcher, *train], os.environ | environment


# Its ranks do end, on both sides, and by name; their launcher stays.
waits_for_ever = pytest.mark.xfail(reason="mpiexec.hydra waits for a host cut off", run=False)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[waits_for_ever] * ("link" in name)) for name in FAULTS],
)
def test_a_fault_ends_the_job(fault, tmp_path):
    command, environment = intel_mpi()
    with hosts.cluster(tmp_path, 2) as cluster:
        outcome = suffer(fault, cluster, command, environment, BOUND)
    assert outcome.seconds is not None, outcome
    assert outcome.code != 0, outcome
    assert not outcome.lost, outcome
    assert outcome.empty is not None, outcome
