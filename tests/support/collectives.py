"""One rank of test_oneccl: every collective against its expected result. Prints `ok RANK`."""

import os
import sys
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import ReduceOp
from torch.nn.parallel import DistributedDataParallel

import intel_ft.distributed.oneccl  # noqa: F401 - registers `ccl`

DTYPES = (
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
REDUCTIONS = {
    ReduceOp.SUM: lambda all_: all_.sum(0),
    ReduceOp.MAX: lambda all_: all_.amax(0),
    ReduceOp.MIN: lambda all_: all_.amin(0),
    ReduceOp.PRODUCT: lambda all_: all_.prod(0),
}

warnings.simplefilter("ignore", FutureWarning)
RANK = int(os.environ.get("PMI_RANK", os.environ.get("RANK", "0")))
SIZE = int(os.environ.get("PMI_SIZE", os.environ.get("WORLD_SIZE", "1")))
RANKS = range(SIZE)


def of(rank, n=5, dtype=torch.float32):
    """The tensor that `rank` contributes."""
    return (torch.arange(n) % 3 + rank + 1).to(dtype)


def total(n=5):
    return sum(of(rank, n) for rank in RANKS)


def equal(result, expected):
    assert result.dtype == expected.dtype and torch.equal(result, expected), (result, expected)


def reductions():
    for dtype in DTYPES:
        everyone = torch.stack([of(rank, dtype=torch.float64) for rank in RANKS])
        for operation, reduced in REDUCTIONS.items():
            result = of(RANK, dtype=dtype)
            dist.all_reduce(result, operation)
            equal(result, reduced(everyone).to(dtype))
    result = of(RANK)
    dist.all_reduce(result, ReduceOp.AVG)
    torch.testing.assert_close(result, total() / SIZE)
    for operation, first in ((ReduceOp.SUM, True), (ReduceOp.MIN, SIZE == 1)):
        result = torch.tensor([RANK == 0, True, False])
        dist.all_reduce(result, operation)
        equal(result, torch.tensor([first, True, False]))
    result = torch.complex(of(RANK), -of(RANK))
    dist.all_reduce(result)
    equal(result, torch.complex(total(), -total()))
    result = torch.tensor([1 << RANK])
    dist.all_reduce(result, ReduceOp.BOR)
    equal(result, torch.tensor([2**SIZE - 1]))
    both = torch.stack([of(RANK), of(RANK)], 1)
    dist.all_reduce(both[:, 0])
    equal(both, torch.stack([total(), of(RANK)], 1))
    dist.all_reduce(torch.empty(0))
    result = of(RANK)
    dist.reduce(result, 0)
    if RANK == 0:
        equal(result, total())
    result = torch.empty(5)
    dist.reduce_scatter(result, [of(RANK) * (rank + 1) for rank in RANKS])
    equal(result, total() * (RANK + 1))
    result = torch.empty(RANK + 1)
    dist.reduce_scatter(result, [of(RANK, rank + 1) for rank in RANKS])
    equal(result, total(RANK + 1))
    result = torch.empty(5)
    dist.reduce_scatter_tensor(result, of(RANK).repeat(SIZE), ReduceOp.AVG)
    torch.testing.assert_close(result, total() / SIZE)


def moves():
    for dtype in (*DTYPES, torch.bool, torch.complex64, torch.float8_e4m3fn):
        result = of(RANK).to(dtype)
        dist.broadcast(result, SIZE - 1)
        assert torch.equal(result.view(torch.uint8), of(SIZE - 1).to(dtype).view(torch.uint8))
    for sizes in ([5] * SIZE, [rank + 1 for rank in RANKS]):
        parts = [torch.empty(size) for size in sizes]
        dist.all_gather(parts, of(RANK, sizes[RANK]))
        for rank in RANKS:
            equal(parts[rank], of(rank, sizes[rank]))
    whole = torch.empty(SIZE * 5)
    dist.all_gather_into_tensor(whole, of(RANK))
    equal(whole, torch.cat([of(rank) for rank in RANKS]))
    parts = [torch.empty(5) for _ in RANKS] if RANK == SIZE - 1 else None
    dist.gather(of(RANK), parts, dst=SIZE - 1)
    for rank, part in enumerate(parts or ()):
        equal(part, of(rank))
    result = torch.empty(5)
    dist.scatter(result, [of(rank) for rank in RANKS] if RANK == 0 else None, src=0)
    equal(result, of(RANK))
    for extra in (0, 1):  # equal and unequal parts
        parts = [torch.empty(3 + extra * (rank + RANK)) for rank in RANKS]
        mine = [torch.full((3 + extra * (rank + RANK),), 10.0 * RANK + rank) for rank in RANKS]
        dist.all_to_all(parts, mine)
        assert all((parts[rank] == 10 * rank + RANK).all() for rank in RANKS)
    whole = torch.empty(SIZE)
    dist.all_to_all_single(whole, 10.0 * RANK + torch.arange(SIZE))
    equal(whole, 10.0 * torch.arange(SIZE) + RANK)
    dist.barrier()


def objects():
    everyone = [None] * SIZE
    dist.all_gather_object(everyone, {"rank": RANK, "text": "x" * RANK})
    assert [one["rank"] for one in everyone] == list(RANKS)
    values = [RANK, "a"] if RANK == 0 else [None, None]
    dist.broadcast_object_list(values, 0)
    assert values == [0, "a"]
    result = [None]
    dist.scatter_object_list(result, [f"to {rank}" for rank in RANKS] if RANK == 0 else None, 0)
    assert result == [f"to {RANK}"]


def futures():
    works = [dist.all_reduce(torch.ones(1000) * n, async_op=True) for n in range(20)]
    for work in works:
        work.wait()
    result = torch.ones(4)
    work = dist.all_reduce(result, async_op=True)
    work.get_future().wait()
    assert work.is_completed() and result[0] == SIZE
    if SIZE > 1:
        try:
            dist.send(result, (RANK + 1) % SIZE)
        except NotImplementedError as error:
            assert "gloo" in str(error)
        else:
            raise AssertionError("send does not exist")


def groups():
    halves = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    middle = dist.new_group([1, 2])
    half = halves[RANK // 2]
    result = torch.ones(3) * RANK
    dist.all_reduce(result, group=half)
    assert result[0] == (1 if RANK < 2 else 5)
    if RANK in (1, 2):
        result = torch.ones(3) * RANK
        dist.all_reduce(result, group=middle)
        assert result[0] == 3
    works = [
        dist.all_reduce(torch.ones(10_000), group=group, async_op=True)
        for _ in range(20)
        for group in (half, dist.group.WORLD)
    ]
    for work in works:
        work.wait()


def gradients():
    """DDP over the ranks computes the gradient of all rows."""

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    rows = torch.randn(2 * SIZE, 8, generator=torch.Generator().manual_seed(1))
    replica, single = model(), model()
    parallel = DistributedDataParallel(replica)
    parallel(rows[2 * RANK : 2 * RANK + 2]).mean().backward()
    single(rows).mean().backward()
    torch.testing.assert_close(replica[0].weight.grad, single[0].weight.grad)


def main(mode, store):
    seconds = 8 if mode == "late" else 60  # which includes the time to connect
    dist.init_process_group(
        "ccl",
        init_method=f"file://{store}",
        rank=RANK,
        world_size=SIZE,
        timeout=timedelta(seconds=seconds),
    )
    if mode == "late":
        if RANK == SIZE - 1:
            time.sleep(60)
        try:
            dist.all_reduce(torch.ones(2))
        except RuntimeError as error:
            print(f"said: {error}", flush=True)
            raise SystemExit(1) from None
    reductions()
    moves()
    objects()
    futures()
    if SIZE >= 4:
        groups()
    gradients()
    print(f"ok {RANK}", flush=True)
    if mode == "destroy":
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
