"""One rank of one side of `bench collectives`: `python -m intel_ft.bench.collectives_worker SIDE
COLLECTIVES SIZES` under mpirun, the first rank's JSON out on stdout; started by
insight.bench_collectives.

SIDE is ccl, gloo or mpi4py, the rest comma-separated. All of them work on the same fp32 arrays.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from intel_ft.config import BackendConfig
from intel_ft.distributed.process_group import init_process_group, network_interface
from intel_ft.distributed.world import World
from intel_ft.subprocess_json import answer

Array = NDArray[np.float32]

BATCHES = 5
_MOST_CALLS = 200  # in a batch
_BATCH_SECONDS = 0.2  # about, and at least one call
_TIMEOUT = 300  # seconds
_PERIOD = 61  # of the pattern that buffers are checked with; sums of it are exact in fp32


@dataclass(frozen=True)
class Communicator:
    """The ranks of a side. `wrap` makes an array what the others take, and is not timed;
    `all_gather` takes the whole and the own part.
    """

    rank: int
    size: int
    wrap: Callable[[Array], Any]
    all_reduce: Callable[[Any], object]
    broadcast: Callable[[Any], object]
    all_gather: Callable[[Any, Any], object]


def measure(ranks: Communicator, collective: str, size: int) -> list[float]:
    """Seconds a call, of each of `BATCHES` batches of calls back to back, the slowest rank's.

    size: bytes of the buffer; of all-gather's whole result. Raises RuntimeError where the result is
    not what it must be.
    """
    count = size // 4 // ranks.size * ranks.size
    pattern = (np.arange(count) % _PERIOD).astype(np.float32)
    part = slice(count // ranks.size * ranks.rank, count // ranks.size * (ranks.rank + 1))
    buffer = pattern * np.float32(ranks.rank + 1)
    wanted = pattern
    if collective == "all-reduce":
        wanted = pattern * np.float32(ranks.size * (ranks.size + 1) / 2)
    own = pattern[part].copy()
    whole, mine = ranks.wrap(buffer), ranks.wrap(own)
    calls: dict[str, Callable[[], object]] = {
        "all-reduce": lambda: ranks.all_reduce(whole),
        "broadcast": lambda: ranks.broadcast(whole),
        "all-gather": lambda: ranks.all_gather(whole, mine),
    }
    call = calls[collective]
    call()
    if not np.array_equal(buffer, wanted):
        raise RuntimeError(f"{collective} of {size} bytes gave a wrong result")
    buffer.fill(0)  # so that sums of sums stay numbers
    number = _calls_in_a_batch(ranks, call)
    batches = []
    for _ in range(BATCHES):
        ranks.all_reduce(ranks.wrap(np.zeros(1, np.float32)))  # start together
        start = time.perf_counter()
        for _ in range(number):
            call()
        batches.append((time.perf_counter() - start) / number)
    everyone = np.empty(ranks.size * BATCHES, np.float32)
    ranks.all_gather(ranks.wrap(everyone), ranks.wrap(np.array(batches, np.float32)))
    slowest: list[float] = everyone.reshape(ranks.size, BATCHES).max(axis=0).tolist()
    return slowest


def _calls_in_a_batch(ranks: Communicator, call: Callable[[], object]) -> int:
    """As many as one call on the first rank suggests, the same on all."""
    start = time.perf_counter()
    call()
    spent = np.array([time.perf_counter() - start], np.float32)
    ranks.broadcast(ranks.wrap(spent))
    return max(1, min(_MOST_CALLS, int(_BATCH_SECONDS / spent[0])))


@contextmanager
def _of_torch(backend: Literal["ccl", "gloo"], world: World) -> Iterator[Communicator]:
    """A process group as a training run makes it."""
    with init_process_group(world, BackendConfig(collective=backend, timeout=_TIMEOUT)):
        yield Communicator(
            world.rank,
            world.size,
            torch.from_numpy,
            dist.all_reduce,
            lambda whole: dist.broadcast(whole, 0),
            dist.all_gather_into_tensor,
        )


@contextmanager
def _of_mpi() -> Iterator[Communicator]:
    """mpi4py's calls without pickling. It ends MPI itself when the process ends."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    yield Communicator(
        world.rank,
        world.size,
        lambda array: array,
        lambda whole: world.Allreduce(MPI.IN_PLACE, whole),
        world.Bcast,
        lambda whole, own: world.Allgather(own, whole),
    )


def main() -> None:
    """Measure the side in argv: {"ranks": how many, "library": its version, "seconds":
    {collective: [[batches] of each size]}}.
    """
    side, collectives, sizes = sys.argv[1:]
    with answer() as stream:
        world = World.detect()
        if world.local_size < world.size and (interface := network_interface(world)):
            # libfabric over TCP would take the first that is up, which may lead nowhere.
            os.environ.setdefault("FI_TCP_IFACE", interface.value)
        group = (
            _of_mpi() if side == "mpi4py" else _of_torch("ccl" if side == "ccl" else "gloo", world)
        )
        with group as ranks:
            seconds = {
                collective: [measure(ranks, collective, int(size)) for size in sizes.split(",")]
                for collective in collectives.split(",")
            }
            if ranks.rank == 0:
                json.dump({"ranks": ranks.size, "seconds": seconds}, stream)


if __name__ == "__main__":
    main()
