"""One fault in a run on two hosts (see hosts.py), and its outcome."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support import hosts
from support.harness import MODEL, shortest_examples, write_config
from support.hosts import Cluster

from intel_ft.files import damage

TRAIN = {
    "max_steps": 100_000,  # it ends with the fault
    "global_batch_size": 2,
    "max_tokens_per_row": 256,
    "save_steps": 2,
    "logging_steps": 1,
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of a fault.

    seconds: from the fault to the end of the command, None if it still ran after the bound; empty:
    from the fault until no host had a process of the run, likewise; lost: whether a complete
    checkpoint was lost; left: processes that remained, by host; said: the command's last line.
    """

    fault: str
    code: int | None
    seconds: float | None
    empty: float | None
    lost: bool
    left: dict[str, list[str]]
    said: str


@dataclass(frozen=True)
class RunningJob:
    """A run in progress, started on the first host; the fault happens to the second."""

    cluster: Cluster
    process: "subprocess.Popen[str]"
    folder: Path  # as it is seen from outside

    def step(self) -> int:
        """The number of logged steps."""
        path = self.folder / "out/metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def checkpoints(self) -> list[Path]:
        """All folders with a checkpoint's name, newest first."""
        folders = (self.folder / "out").glob("checkpoint-*")
        return sorted(folders, key=lambda path: -int(path.name.rpartition("-")[2]))

    def rank(self) -> int:
        """The PID of the rank on the second host."""
        commands = self.cluster.hosts[1].processes()
        return next(pid for pid, command in commands.items() if " train " in command)


def _in_a_checkpoint(job: RunningJob) -> None:
    partial = "out/.checkpoint-*.partial"
    hosts.wait(lambda: any(job.folder.glob(partial)), 60, poll=0.0005)
    job.cluster.link_down(job.cluster.hosts[1])


def _in_a_step(job: RunningJob) -> None:
    step = job.step()
    hosts.wait(lambda: job.step() > step, 60)
    job.cluster.link_down(job.cluster.hosts[1])


def _fill(job: RunningJob) -> None:
    with (job.folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**16))
        except OSError:
            pass


FAULTS: dict[str, Callable[[RunningJob], None]] = {
    "SIGKILL a rank": lambda job: os.kill(job.rank(), signal.SIGKILL),
    "SIGSTOP a rank": lambda job: os.kill(job.rank(), signal.SIGSTOP),
    "link down in a step": _in_a_step,
    "link down in a checkpoint": _in_a_checkpoint,
    "SIGKILL the launcher": lambda job: hosts.kill(job.process),
    "disk full": _fill,
}


def suffer(
    fault: str,
    cluster: Cluster,
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    bound: float,
) -> Outcome:
    """Run `command` on the first host, cause the fault after its second checkpoint, and wait.

    The command runs in a folder with config.yaml and a host file `hosts`. The wait is at most
    `bound` seconds.
    """
    inside, outside = cluster.disk / "run", cluster.disk_from_outside / "run"
    outside.mkdir()
    shortest_examples(outside / "train.jsonl", 0, 40)
    data = {"train": "train.jsonl", "max_length": 256}
    model = {"name_or_path": str(MODEL), "dtype": "float32"}
    write_config(outside / "config.yaml", data=data, model=model, train=TRAIN)
    (outside / "hosts").write_text("".join(f"{host.name}\n" for host in cluster.hosts))
    log = cluster.disk.parent / "log"  # not on the disk that becomes full
    with log.open("w") as file:
        process = cluster.hosts[0].start(
            command, cwd=inside, env={**environment}, stdout=file, stderr=subprocess.STDOUT
        )
    job = RunningJob(cluster, process, outside)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        return len(job.checkpoints()) > 1

    hosts.wait(ready, 180)
    newest = job.checkpoints()[0]
    FAULTS[fault](job)
    began = time.monotonic()
    seconds = _until(lambda: process.poll() is not None, began, bound)
    empty = _until(lambda: not any(_left(cluster).values()), began, bound)
    whole = [path for path in job.checkpoints() if damage(path) is None]
    number = int(newest.name.rpartition("-")[2])
    kept = whole and int(whole[0].name.rpartition("-")[2]) >= number
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip("= ")]
    errors = [line for line in lines if "error: " in line] or lines or [""]
    return Outcome(
        fault, process.poll(), seconds, empty, not kept, _left(cluster), errors[-1].strip()
    )


def _until(condition: Callable[[], bool], began: float, bound: float) -> float | None:
    """Seconds from `began` until the condition held, None if it did not within `bound`."""
    while not condition():
        if time.monotonic() - began > bound:
            return None
        time.sleep(0.1)
    return time.monotonic() - began


def _left(cluster: Cluster) -> dict[str, list[str]]:
    """The processes of a run on each host, without the sshd, which may miss that a link is down."""
    return {
        host.name: [c for c in host.processes().values() if not c.startswith("sshd")]
        for host in cluster.hosts
    }
