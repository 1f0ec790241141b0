"""One rank of a side's run: `python -m intel_ft.bench.rank_worker TASK` binds itself to its cores,
and is then insight.side; started by insight.runs through a real launcher.
"""

import os
import sys

from intel_ft.bench.task import Task
from intel_ft.distributed.placement import places
from intel_ft.host import topology
from intel_ft.host.launcher_env import LauncherEnv


def bind(threads: int | None, started: LauncherEnv) -> None:
    """A core a thread, the same for this rank however many run beside it: idle ones stay idle."""
    host = topology.read()
    cores = threads or host.usable // started.local_size
    parts = places(host, host.usable // cores)
    os.sched_setaffinity(0, parts[started.local_rank].cpus[:cores])


def main() -> None:
    """Bind before torch is imported, then measure."""
    bind(Task.from_json(sys.argv[1]).threads, LauncherEnv.detect())

    from intel_ft.bench import worker

    worker.main()


if __name__ == "__main__":
    main()
