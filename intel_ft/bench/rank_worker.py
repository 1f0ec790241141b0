"""One rank of a contender's run: binds itself to its cores, then runs `bench.worker`.

`python -m intel_ft.bench.rank_worker TASK`, started by a real launcher.
"""

import os
import sys

from intel_ft.bench.task import Task
from intel_ft.distributed.placement import places
from intel_ft.gc_pause import gc_paused
from intel_ft.host import topology
from intel_ft.host.launcher_env import LauncherEnv
from intel_ft.optional_packages import import_peft


def bind(threads: int | None, started: LauncherEnv) -> None:
    """Bind to one core per thread: the same cores whatever the number of ranks."""
    host = topology.read()
    cores = threads or host.usable // started.local_size
    parts = places(host, host.usable // cores)
    os.sched_setaffinity(0, parts[started.local_rank].cpus[:cores])


def main() -> None:
    """Bind before torch is imported, then run the worker."""
    bind(Task.from_json(sys.argv[1]).threads, LauncherEnv.detect())

    import_peft()
    with gc_paused():
        from intel_ft.bench import worker

    worker.main()


if __name__ == "__main__":
    main()
