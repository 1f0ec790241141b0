"""Signs of life between ranks, so that a frozen or unreachable one ends the job in a stated time,
by name; called from distributed.join.

Each rank has a thread that counts up in the c10d store. Rank 0 looks at everybody's count, the
others at rank 0's, each by its own clock. A long step is no problem: the thread beats through it.
"""

import logging
import os
import platform
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from intel_ft.distributed.rank_startup import leave_exit_code
from intel_ft.distributed.world import World

BEATS = 6  # in a timeout

logger = logging.getLogger(__name__)


class Heartbeat:
    """Beats from construction until `stop`. The store's server must be running by then."""

    def __init__(self, world: World, timeout: float) -> None:
        self._world, self._timeout = world, timeout
        self._stopped = threading.Event()
        # A connection of its own: on a shared one a beat would wait behind another's `get`.
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=timeout),
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = PrefixStore(f"intel_ft/heartbeat/{attempt}", store)
        self._store.set(f"host/{world.rank}", platform.node())
        self._store.set(str(world.rank), "0")
        dist.barrier()
        self._done = time.monotonic()  # when the thread last got through the store
        self._threads = [
            threading.Thread(target=self._run, name="heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="heartbeat watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop beating and watching: no thread may use the store while Python ends."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        watched = range(1, self._world.size) if self._world.rank == 0 else [0]
        hosts = [self._store.get(f"host/{rank}").decode() for rank in watched]
        heard = {rank: (b"", time.monotonic()) for rank in watched}
        count = 0
        while not self._stopped.wait(self._timeout / BEATS):
            count += 1
            try:
                self._store.set(str(self._world.rank), str(count))
                values = self._store.multi_get([str(rank) for rank in watched])
            except RuntimeError:
                if not self._stopped.is_set():
                    who = f"rank 0 on {hosts[0]}" if self._world.rank else "the c10d store"
                    self._end(f"{who} has ended or cannot be reached")
                return
            now = self._done = time.monotonic()
            for rank, host, value in zip(watched, hosts, values, strict=True):
                if value != heard[rank][0]:
                    heard[rank] = (value, now)
                elif now - heard[rank][1] > self._timeout:
                    silent = f"gave no sign of life for {self._timeout:g} s"
                    self._end(f"rank {rank} on {host} {silent}")

    def _watch(self) -> None:
        """A call to a store that is cut off may never return."""
        while not self._stopped.wait(self._timeout / BEATS):
            if time.monotonic() - self._done > self._timeout:
                self._end(f"rank 0 cannot be reached for {self._timeout:g} s")

    def _end(self, text: str) -> None:
        """Leave at once: the main thread may wait in a library, and launchers end the others. The
        line does not go through logging, whose lock that thread may hold.
        """
        rank = "" if self._world.rank == 0 else f"rank {self._world.rank}: "
        line = f"{rank}{text}: the job ends; --resume goes on from the last checkpoint"
        print(f"error: {line}", file=sys.stderr, flush=True)
        leave_exit_code(1, line)
        os._exit(1)
