"""One rank of one contender of `bench collectives`, started by mpirun.

`python -m intel_ft.bench.collectives_worker CONTENDER COLLECTIVES SIZES` prints the first rank's
measurements as JSON. CONTENDER is ccl, gloo or mpi4py; the other two are comma-separated lists. All
contenders use the same fp32 arrays.
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

from intel_ft.config_sections import BackendConfig
from intel_ft.distributed.process_group import init_process_group, network_interface
from intel_ft.distributed.world import World
from intel_ft.subprocess_json import result_stream

Array = NDArray[np.float32]

BATCHES = 5
_MAX_CALLS = 200  # in a batch
_BATCH_SECONDS = 0.2  # approximate; a batch has at least one call
_TIMEOUT = 300  # seconds
_PERIOD = 61  # of the pattern that buffers are checked with; its sums are exact in fp32


@dataclass(frozen=True)
class Communicator:
    """The collectives of a contender.

    `wrap` turns an array into what the collectives take, and is not timed. `all_gather` takes the
    whole buffer and this rank's part.
    """

    rank: int
    size: int
    wrap: Callable[[Array], Any]
    all_reduce: Callable[[Any], object]
    broadcast: Callable[[Any], object]
    all_gather: Callable[[Any, Any], object]


def measure(communicator: Communicator, collective: str, size: int) -> list[float]:
    """Seconds per call on the slowest rank, for each of `BATCHES` batches of back-to-back calls.

    size: bytes of the buffer; for all-gather, of the whole result. Raises RuntimeError if a
    collective gives a wrong result.
    """
    ranks, rank = communicator.size, communicator.rank
    count = size // 4 // ranks * ranks
    pattern = (np.arange(count) % _PERIOD).astype(np.float32)
    part = slice(count // ranks * rank, count // ranks * (rank + 1))
    buffer = pattern * np.float32(rank + 1)
    expected = pattern
    if collective == "all-reduce":
        expected = pattern * np.float32(ranks * (ranks + 1) / 2)
    whole = communicator.wrap(buffer)
    local_part = communicator.wrap(pattern[part].copy())
    calls: dict[str, Callable[[], object]] = {
        "all-reduce": lambda: communicator.all_reduce(whole),
        "broadcast": lambda: communicator.broadcast(whole),
        "all-gather": lambda: communicator.all_gather(whole, local_part),
    }
    call = calls[collective]
    call()
    if not np.array_equal(buffer, expected):
        raise RuntimeError(f"{collective} of {size} bytes returned a wrong result")
    buffer.fill(0)  # repeated sums would overflow
    number = _calls_per_batch(communicator, call)
    batches = []
    for _ in range(BATCHES):
        communicator.all_reduce(communicator.wrap(np.zeros(1, np.float32)))  # a barrier
        start = time.perf_counter()
        for _ in range(number):
            call()
        batches.append((time.perf_counter() - start) / number)
    gathered = np.empty(ranks * BATCHES, np.float32)
    communicator.all_gather(
        communicator.wrap(gathered), communicator.wrap(np.array(batches, np.float32))
    )
    slowest: list[float] = gathered.reshape(ranks, BATCHES).max(axis=0).tolist()
    return slowest


def _calls_per_batch(communicator: Communicator, call: Callable[[], object]) -> int:
    """The number of calls in a batch, from one timed call on rank 0; the same on all ranks."""
    start = time.perf_counter()
    call()
    seconds = np.array([time.perf_counter() - start], np.float32)
    communicator.broadcast(communicator.wrap(seconds))
    return max(1, min(_MAX_CALLS, int(_BATCH_SECONDS / seconds[0])))


@contextmanager
def _torch_communicator(backend: Literal["ccl", "gloo"], world: World) -> Iterator[Communicator]:
    """A process group, created as in a training run."""
    with init_process_group(world, BackendConfig(collective=backend, timeout=_TIMEOUT)):
        yield Communicator(
            rank=world.rank,
            size=world.size,
            wrap=torch.from_numpy,
            all_reduce=dist.all_reduce,
            broadcast=lambda whole: dist.broadcast(whole, 0),
            all_gather=dist.all_gather_into_tensor,
        )


@contextmanager
def _mpi_communicator() -> Iterator[Communicator]:
    """mpi4py's calls without pickling. mpi4py finalizes MPI when the process exits."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    yield Communicator(
        rank=world.rank,
        size=world.size,
        wrap=lambda array: array,
        all_reduce=lambda whole: world.Allreduce(MPI.IN_PLACE, whole),
        broadcast=world.Bcast,
        all_gather=lambda whole, part: world.Allgather(part, whole),
    )


def main() -> None:
    """Measure the contender in argv: {"ranks", "seconds": {collective: [batches of each size]}}."""
    contender, collectives, sizes = sys.argv[1:]
    with result_stream() as stream:
        world = World.detect()
        if world.local_size < world.size and (interface := network_interface(world)):
            # libfabric over TCP uses the first interface that is up, which may not reach the hosts.
            os.environ.setdefault("FI_TCP_IFACE", interface.value)
        if contender == "mpi4py":
            context = _mpi_communicator()
        else:
            context = _torch_communicator("ccl" if contender == "ccl" else "gloo", world)
        with context as communicator:
            seconds = {
                name: [measure(communicator, name, int(size)) for size in sizes.split(",")]
                for name in collectives.split(",")
            }
            if communicator.rank == 0:
                json.dump({"ranks": communicator.size, "seconds": seconds}, stream)


if __name__ == "__main__":
    main()
