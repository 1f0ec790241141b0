"""A Slurm cluster on the hosts of hosts.py, with configuration and state in a temporary folder.

It runs Debian's munged, slurmctld and slurmd.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import hosts
from support.hosts import Host

_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
# A requeued job waits until its old credential has expired: seconds, not the usual two minutes.
_CONFIG = """\
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
AuthInfo=cred_expire=10
StateSaveLocation={folder}/state
SlurmctldPidFile=/run/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile=/run/slurmd.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
KillWait=5
NodeName={nodes} CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What this machine lacks to run Slurm, and how to install it; None if nothing."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in _NEEDED if shutil.which(name, path=path) is None]
    return f"{', '.join(missing)} not found: make cluster" if missing else hosts.why_not()


@dataclass(frozen=True)
class Slurm:
    """A cluster of two nodes; commands run on the first, which also runs the controller."""

    head: Host
    folder: Path

    def run(self, *command: str | Path, cwd: str | Path = "/") -> str:
        """Run one of Slurm's commands; its stdout."""
        environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        return self.head.run(*command, cwd=cwd, env=environment).strip()

    def submit(self, script: Path, *options: str) -> str:
        """The number of the job."""
        return self.run("sbatch", "--parsable", *options, script, cwd=script.parent)

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`, like JobState or Restarts."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(pair.partition("=")[::2] for pair in shown.split())[name]

    def wait(self, job: str, *states: str, seconds: float = 120) -> str:
        """Wait until the job is in one of these states."""
        end = time.monotonic() + seconds
        while (state := self.field(job, "JobState")) not in states:
            assert time.monotonic() < end, f"job {job} is still {state}\n{self.logs()}"
            time.sleep(0.1)
        return state

    def logs(self) -> str:
        """The logs of the daemons."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Slurm with the nodes node1 and node2, ready for jobs."""
    with hosts.cluster(folder, 2) as machines:
        home = folder / "slurm"
        (home / "state").mkdir(parents=True)
        (home / "munge.key").write_bytes(os.urandom(128))
        (home / "munge.key").chmod(0o600)
        values = {
            "controller": machines.hosts[0].name,
            "nodes": ",".join(host.name for host in machines.hosts),
            "cores": os.cpu_count(),
            "folder": home,
        }
        (home / "slurm.conf").write_text(_CONFIG.format(**values))
        slurm = Slurm(machines.hosts[0], home)
        for host in machines.hosts:
            host.run("mkdir", "-p", "/run/munge")
            names = {"key-file": home / "munge.key", "log-file": home / f"munged-{host.name}.log"}
            names |= {f"{kind}-file": f"/run/munge/{kind}" for kind in ("pid", "seed")}
            host.run("munged", "--force", *(f"--{name}={path}" for name, path in names.items()))
        _daemon(slurm.head, "slurmctld", "-i", "-f", home / "slurm.conf")
        for host in machines.hosts:
            _daemon(host, "slurmd", "-f", home / "slurm.conf")
        end = time.monotonic() + 60
        while slurm.run("sinfo", "--noheader", "--format=%T") != "idle":
            assert time.monotonic() < end, slurm.logs()
            time.sleep(0.05)
        yield slurm


def _daemon(host: Host, *command: str | Path) -> None:
    """Start a daemon, which goes into the background by itself and ends with the host."""
    host.run(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
