"""One rank of test_oneccl: every collective against its expected result. Prints `ok RANK`."""

import os
import sys
import threading
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import ReduceOp
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import intel_ft.distributed.oneccl  # noqa: F401 - registers `ccl`

os.environ.setdefault("CCL_BF16", "scalar")  # as on CPUs without avx512_bf16
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


def rounding():
    """Sums of 16-bit floats are those of float32, rounded once; a NaN stays in MIN and MAX."""
    for dtype in (torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(0)
        everyone = torch.rand(SIZE, SIZE * 500, generator=generator).to(dtype)
        exact = everyone.float().sum(0)
        for operation, expected in (
            (ReduceOp.SUM, exact.to(dtype)),
            (ReduceOp.AVG, (exact / SIZE).to(dtype)),
        ):
            result = everyone[RANK].clone()
            dist.all_reduce(result, operation)
            equal(result, expected)
            part = torch.empty(500, dtype=dtype)
            dist.reduce_scatter_tensor(part, everyone[RANK].clone(), operation)
            equal(part, expected[RANK * 500 : (RANK + 1) * 500])
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    dist.all_reduce(parameter)
    assert parameter[0] == SIZE
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for operation in (ReduceOp.MIN, ReduceOp.MAX):
            for with_nan in {0, SIZE - 1}:
                result = torch.tensor([-1.5 - RANK, 2.5 + RANK, -0.0], dtype=dtype)
                if with_nan == RANK:
                    result[2] = torch.nan
                dist.all_reduce(result, operation)
                first, second = (
                    (-1.5, 1.5 + SIZE) if operation == ReduceOp.MAX else (-0.5 - SIZE, 2.5)
                )
                assert result[:2].tolist() == [first, second] and result[2].isnan(), result


def refused(error, text, call):
    try:
        call()
    except error as raised:
        assert text in str(raised), raised
    else:
        raise AssertionError(f"not refused: {text}")


def wrong_arguments():
    """Tensors of wrong sizes, dtypes or number are refused before any rank waits for another."""
    some, ints, n = torch.ones(4), torch.ones(4, dtype=torch.int32), SIZE
    gather, scatter = dist.all_gather_into_tensor, dist.reduce_scatter_tensor
    exchange = dist.all_to_all_single
    for text, call in (
        ("times", lambda: gather(torch.empty(4 * n + 1), some)),
        ("times", lambda: gather(torch.empty(4 * n - 1), some)),
        ("times", lambda: gather(torch.empty(4 * n, dtype=torch.int32), some)),
        ("times", lambda: scatter(torch.empty(4), torch.empty(4 * n + 1))),
        ("times", lambda: scatter(torch.empty(4), torch.empty(4 * n, dtype=torch.float64))),
        ("evenly", lambda: exchange(torch.empty(n), torch.empty(n * 2 + 1)) if n > 1 else 1 / 0),
        ("add up", lambda: exchange(torch.empty(n), torch.empty(n), None, [2] * n)),
        ("parts", lambda: exchange(torch.empty(n), torch.empty(n), [1] * (n - 1) + [0, 1])),
        ("dtype", lambda: exchange(torch.empty(n), torch.empty(n, dtype=torch.int32))),
        ("parts", lambda: dist.all_gather([some] * (n + 1), some)),
        ("a part is", lambda: dist.all_gather([torch.empty(3)] * n, some)),
        ("dtype", lambda: dist.all_gather([ints] * n, some)),
        ("parts", lambda: dist.all_to_all([some] * (n + 1), [some] * n)),
        ("parts", lambda: dist.reduce_scatter(some, [some] * (n + 1))),
        ("a part is", lambda: dist.reduce_scatter(torch.empty(3), [some] * n)),
        ("sparse", lambda: dist.broadcast(some.to_sparse(), 0)),
    ):
        if n > 1 or "even" not in text:
            refused((ValueError, RuntimeError), text, call)
    if RANK == 0:
        refused(ValueError, "parts", lambda: dist.gather(some, [torch.empty(4)] * (n + 1)))
        refused(ValueError, "a part is", lambda: dist.gather(some, [torch.empty(3)] * n))
        refused(ValueError, "a part is", lambda: dist.scatter(some, [torch.empty(5)] * n))
    for value, operation in (
        (ints, ReduceOp.AVG),
        (some, ReduceOp.BAND),
        (torch.ones(2, dtype=torch.uint64), ReduceOp.MAX),
    ):
        refused(NotImplementedError, "cannot", lambda v=value, o=operation: dist.all_reduce(v, o))
    complex_ = torch.ones(2, dtype=torch.complex64)
    scatter_product = lambda: scatter(complex_, complex_.repeat(n), ReduceOp.PRODUCT)  # noqa: E731
    refused(NotImplementedError, "cannot", scatter_product)
    if n > 1:  # what no rank sees alone: every rank raises, and the group goes on
        sizes = [2] * n if RANK == 0 else [1] * n
        wrong = lambda: exchange(torch.empty(n), torch.empty(sum(sizes)), None, sizes)  # noqa: E731
        refused(RuntimeError, "sends 8 bytes to rank", wrong)
        dist.set_debug_level(dist.DebugLevel.DETAIL)
        checked = dist.new_group()
        dist.set_debug_level(dist.DebugLevel.OFF)
        mine = torch.ones(RANK + 1)
        refused(RuntimeError, "float32 [1]", lambda: dist.all_reduce(mine, group=checked))
        last = lambda: dist.reduce(some, 0, group=checked)  # noqa: E731
        first = lambda: dist.all_reduce(some, group=checked)  # noqa: E731
        refused(RuntimeError, "calls differ", last if n - 1 == RANK else first)
        dist.all_reduce(some, group=checked)
        equal(some, torch.full((4,), float(n)))
        dist.destroy_process_group(checked)


def messages():
    """What oneCCL does not have goes over gloo: messages, sparse sums, a monitored barrier."""
    after, before = (RANK + 1) % SIZE, (RANK - 1) % SIZE
    sent, received = torch.full((3,), float(RANK)), torch.empty(3)
    if SIZE > 1:
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, sent, after), dist.P2POp(dist.irecv, received, before)]
        )
        for work in works:
            work.wait()
        assert received[0] == before
        request = dist.isend(sent, after, tag=7)
        assert dist.recv(received, tag=7) == before and received[0] == before
        request.wait()
    indices, values = torch.tensor([[RANK, SIZE]]), torch.tensor([1.0, 2.0])
    sparse = torch.sparse_coo_tensor(indices, values, (SIZE + 1,), check_invariants=True)
    dist.all_reduce(sparse)
    equal(sparse.to_dense(), torch.tensor([1.0] * SIZE + [2.0 * SIZE]))
    dist.group.WORLD.monitored_barrier(timedelta(seconds=30), wait_all_ranks=True)


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


def threads():
    """Two threads that call different groups, in another order on each rank."""
    groups = [dist.group.WORLD, dist.new_group()]
    failures = []

    def work(group):
        try:
            for _ in range(30):
                result = torch.ones(100, dtype=torch.bfloat16)
                dist.all_reduce(result, group=group)
                assert result[0] == SIZE
                part = torch.empty(5)
                dist.reduce_scatter_tensor(part, of(RANK).repeat(SIZE), ReduceOp.AVG, group)
                torch.testing.assert_close(part, total() / SIZE)
                dist.barrier(group)
            dist.all_to_all_single(torch.empty(SIZE), torch.empty(SIZE), group=group)
            everyone = [None] * SIZE
            dist.all_gather_object(everyone, RANK, group)
            assert everyone == list(RANKS)
            dist.broadcast_object_list(everyone, SIZE - 1, group)
        except Exception as error:
            failures.append(error)

    other = threading.Thread(target=work, args=[groups[1]])
    other.start()
    work(groups[0])
    other.join()
    assert not failures, failures


def programs(folder):
    """What torch builds on groups has the results of gloo."""
    import torch_programs

    group = dist.group.WORLD
    assert dist.get_backend() == "ccl" and group.group_desc == "default_pg"
    assert group._device_types == [torch.device("cpu")]
    ours = torch_programs.results(group, f"{folder}-ccl")
    gloos = torch_programs.results(dist.new_group(backend="gloo"), f"{folder}-gloo")
    assert ours.keys() == gloos.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, gloos[name], rtol=1e-6, atol=1e-7, msg=name)
    if SIZE == 4:
        mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
        result = torch.ones(2) * RANK
        dist.all_reduce(result, group=mesh.get_group("rows"))
        assert result[0] == RANK % 2 * 2 + 2


def gradients():
    """DDP over the ranks computes the gradient of all rows, also of a sparse embedding."""

    def model():
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(6, 8, sparse=True)
        return torch.nn.Sequential(
            embedding, torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )

    def compressed(state, bucket):
        """torch refuses its hook by its name, because it was made for NCCL."""
        return bf16_compress_hook(state, bucket)

    rows = torch.randint(6, (2 * SIZE, 3), generator=torch.Generator().manual_seed(1))
    single = model()
    single(rows).mean().backward()
    for hook, tolerance in ((None, 1e-5), (compressed, 1e-2)):
        replica = model()
        parallel = DistributedDataParallel(replica)
        if hook is not None:
            replica[0].requires_grad_(False)
            parallel = DistributedDataParallel(replica)
            parallel.register_comm_hook(None, hook)
        parallel(rows[2 * RANK : 2 * RANK + 2]).mean().backward()
        for ours, expected in zip(replica.parameters(), single.parameters(), strict=True):
            if ours.requires_grad:
                torch.testing.assert_close(
                    ours.grad.to_dense(),
                    expected.grad.to_dense(),
                    rtol=tolerance,
                    atol=tolerance / 10,
                )


def main(mode, store):
    seconds = 8 if mode == "late" else 60  # which includes the time to connect

    def start():
        dist.init_process_group(
            "ccl",
            init_method=f"file://{store}",
            rank=RANK,
            world_size=SIZE,
            timeout=timedelta(seconds=seconds),
        )

    start()
    if mode == "late":
        if RANK == SIZE - 1:
            time.sleep(60)
        try:
            dist.all_reduce(torch.ones(2))
        except RuntimeError as error:
            print(f"said: {error}", flush=True)
            raise SystemExit(1) from None
    reductions()
    rounding()
    wrong_arguments()
    messages()
    moves()
    objects()
    futures()
    if SIZE >= 4:
        groups()
    gradients()
    threads()
    if SIZE > 1 and mode == "destroy":
        programs(store)
    if mode == "destroy":
        for _ in range(2):
            dist.destroy_process_group()
            start()
            dist.all_reduce(torch.ones(2))
        dist.destroy_process_group()
    print(f"ok {RANK}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
