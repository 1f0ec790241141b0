"""Heartbeats between ranks: a frozen or unreachable rank ends the job in time, and is named.

A thread of each rank increments a counter in the c10d store. Rank 0 watches the counters of all
ranks, the others watch that of rank 0, each by its own clock. A long step does no harm, because the
thread runs independently of it.
"""

import logging
import os
import platform
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from intel_ft.distributed.rank_startup import report_exit_code
from intel_ft.distributed.world import World

BEATS = 6  # per timeout

logger = logging.getLogger(__name__)


class Heartbeat:
    """Sends heartbeats from construction until `stop`, through the `store` of the ranks' group."""

    def __init__(self, world: World, timeout: float, store: Store) -> None:
        self._world, self._timeout = world, timeout
        self._stopped = threading.Event()
        # A separate connection: on a shared one a heartbeat would wait for another caller's `get`.
        own = store.clone()  # type: ignore[attr-defined]  # torch's stubs lack it
        self._store = PrefixStore("heartbeat", own)
        self._store.set_timeout(timedelta(seconds=timeout))
        self._store.set(f"host/{world.rank}", platform.node())
        self._store.set(str(world.rank), "0")
        dist.barrier()
        self._last_success = time.monotonic()  # of a call to the store
        self._threads = [
            threading.Thread(target=self._run, name="heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="heartbeat watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both threads: none may use the store while Python exits."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        watched = range(1, self._world.size) if self._world.rank == 0 else [0]
        hosts = [self._store.get(f"host/{rank}").decode() for rank in watched]
        last = {rank: (b"", time.monotonic()) for rank in watched}  # counter, and when it changed
        count = 0
        while not self._stopped.wait(self._timeout / BEATS):
            count += 1
            try:
                self._store.set(str(self._world.rank), str(count))
                values = self._store.multi_get([str(rank) for rank in watched])
            except RuntimeError:
                if not self._stopped.is_set():
                    who = f"rank 0 on {hosts[0]}" if self._world.rank else "the c10d store"
                    self._end(f"{who} has ended or is unreachable")
                return
            now = self._last_success = time.monotonic()
            for rank, host, value in zip(watched, hosts, values, strict=True):
                if value != last[rank][0]:
                    last[rank] = (value, now)
                elif now - last[rank][1] > self._timeout:
                    silence = f"sent no heartbeat for {self._timeout:g} s"
                    self._end(f"rank {rank} on {host} {silence}")

    def _watch(self) -> None:
        """End the process if a call to the store does not return, as on a broken connection."""
        while not self._stopped.wait(self._timeout / BEATS):
            if time.monotonic() - self._last_success > self._timeout:
                master = os.environ["MASTER_ADDR"]
                self._end(f"rank 0 on {master} was unreachable for {self._timeout:g} s")

    def _end(self, text: str) -> None:
        """Exit at once: the main thread may be blocked in a library. The launcher ends the others.

        The line is not logged through logging, because the main thread may hold its lock.
        """
        rank = f"rank {self._world.rank} on {platform.node()}: " if self._world.rank else ""
        line = f"{rank}{text}: the job ends; use --resume to continue from the latest checkpoint"
        print(f"error: {line}", file=sys.stderr, flush=True)
        report_exit_code(1, line)
        os._exit(1)
