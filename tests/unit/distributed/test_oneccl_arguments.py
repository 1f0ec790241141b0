"""What the `ccl` backend converts, refuses and compares before it calls oneCCL."""

import math
import os

import pytest
import torch
from torch.distributed import HashStore, ReduceOp

from intel_ft.distributed.oneccl import checks
from intel_ft.distributed.oneccl.call_thread import Call
from intel_ft.distributed.oneccl.process_group import _unused_part
from intel_ft.distributed.oneccl.reductions import require_reducible, to_reducible, write_reduced

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def reduced(rows, operation, combine):
    """The rows reduced as the ranks' tensors are, with `combine` in oneCCL's place."""
    flats = [to_reducible(row, operation)[0].clone() for row in rows]
    flat = flats[0]
    for other in flats[1:]:
        flat = combine(flat, other)
    result = torch.empty_like(rows[0])
    write_reduced(flat, result, operation, len(rows))
    return result


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("operation", "combine"), [(ReduceOp.MIN, torch.minimum), (ReduceOp.MAX, torch.maximum)]
)
def test_a_nan_stays_in_min_and_max(dtype, operation, combine):
    """oneCCL sees integers, which have no NaN to lose, in the order of the floats."""
    values = [-math.inf, -3.5, -0.0, 0.0, 1e-7, 2.0, math.inf, math.nan]
    rows = torch.tensor([values, values[::-1], [1.0] * 8], dtype=dtype)
    assert not to_reducible(rows, operation)[0].is_floating_point()
    expected = rows.amin(0) if operation == ReduceOp.MIN else rows.amax(0)
    assert torch.equal(reduced(rows, operation, combine).nan_to_num(7), expected.nan_to_num(7))
    assert reduced(rows, operation, combine)[[0, 7]].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_floats_are_summed_in_float32_and_rounded_once(dtype):
    rows = torch.rand(5, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = rows.double().sum(0)
    assert torch.equal(reduced(rows, ReduceOp.SUM, torch.add), exact.to(dtype))
    assert torch.equal(reduced(rows, ReduceOp.AVG, torch.add), (exact / 5).float().to(dtype))


def test_complex_numbers_and_booleans():
    rows = torch.randn(2, 3, dtype=torch.complex64)
    torch.testing.assert_close(reduced(rows, ReduceOp.SUM, torch.add), rows.sum(0))
    rows = torch.tensor([[True, False, False], [True, True, False]])
    assert reduced(rows, ReduceOp.SUM, torch.maximum).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("dtype", "operation"),
    [
        (torch.int32, ReduceOp.AVG),
        (torch.bool, ReduceOp.AVG),
        (torch.float32, ReduceOp.BAND),
        (torch.complex64, ReduceOp.PRODUCT),
        (torch.complex64, ReduceOp.MAX),
        (torch.uint64, ReduceOp.MIN),
    ],
)
def test_reductions_that_are_refused(dtype, operation):
    with pytest.raises(NotImplementedError, match=str(dtype)):
        require_reducible(torch.ones(2, dtype=dtype), operation)


def test_tensors_that_do_not_fit_are_refused():
    some = torch.ones(4)
    for whole in (torch.empty(9), torch.empty(7), torch.empty(8, dtype=torch.int32)):
        with pytest.raises(ValueError, match="is not 2 times"):
            checks.require_parts("gather", whole, some, 2)
    checks.require_parts("gather", torch.empty(2, 4), some, 2)
    with pytest.raises(ValueError, match="3 parts for 2 ranks"):
        checks.require_length("gather", [some] * 3, 2)
    with pytest.raises(ValueError, match=r"\[3\], but it must be torch.float32 \[4\]"):
        checks.require_alike("gather", [torch.empty(3)], some)
    with pytest.raises(ValueError, match="sparse_coo"):
        checks.require_dense([some.to_sparse()])
    with pytest.raises(ValueError, match="meta"):
        checks.require_dense([torch.empty(3, device="meta")])


@pytest.mark.parametrize(
    ("rows", "sizes", "problem"),
    [(5, [], "evenly"), (4, [2, 1], "add up"), (4, [2, 1, 1], "3 parts for 2 ranks")],
)
def test_uneven_splits_are_refused(rows, sizes, problem):
    with pytest.raises(ValueError, match=problem):
        checks.split("all_to_all_single", torch.empty(rows, 3), sizes, 2)


def test_splits():
    whole = torch.arange(6).view(3, 2)
    assert [part.tolist() for part in checks.split("x", whole, [0, 3], 2)] == [[], whole.tolist()]
    assert [len(part) for part in checks.split("x", torch.empty(4), [], 2)] == [2, 2]
    assert [len(part) for part in checks.split("x", torch.empty(0), [], 2)] == [0, 0]


def test_calls_that_differ_are_named():
    texts = [checks.described("all_reduce", [ReduceOp.SUM, [torch.ones(n)]]) for n in (2, 2, 3)]
    checks.require_equal_rows(torch.stack([checks.to_row(text) for text in texts[:2]]))
    with pytest.raises(RuntimeError, match=r"float32 \[2\].*, rank 2 all_reduce.*float32 \[3\]"):
        checks.require_equal_rows(torch.stack([checks.to_row(text) for text in texts]))
    ends = [checks.to_row("x" * 9000 + end) for end in "ab"]  # longer than what is shown
    with pytest.raises(RuntimeError, match="differ"):
        checks.require_equal_rows(torch.stack(ends))


def test_wait_ends_with_its_own_timeout():
    with pytest.raises(RuntimeError, match=r"a call did not finish within 0.01 s"):
        Call("a call", 9, int).wait(0.01)
    assert Call.done("a call", lambda: 7).wait(0.01) == 7
    failed = Call.done("a call", lambda: 1 // 0)
    assert isinstance(failed.error, ZeroDivisionError) and failed.is_done()


@pytest.mark.parametrize(("local_size", "restarts"), [("2", ("1", "1")), ("1", ("1", "0"))])
def test_a_group_finds_no_keys_of_one_before_it(monkeypatch, local_size, restarts):
    """torchrun's store outlives the ranks; agents of two hosts do not count the same restarts."""
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", local_size)
    monkeypatch.setitem(os.environ, "TORCHELASTIC_RESTART_COUNT", "0")
    store = HashStore()
    before = [_unused_part(store, 2) for _ in range(2)]
    before[0].set("key", "old")
    assert before[1].get("key") == b"old"
    after = []
    for count in restarts:
        monkeypatch.setitem(os.environ, "TORCHELASTIC_RESTART_COUNT", count)
        after.append(_unused_part(store, 2))
    assert not after[0].check(["key"])
    after[0].set("key", "new")
    assert after[1].get("key") == b"new"
    next_group = _unused_part(store, 2)
    assert not next_group.check(["key"])
