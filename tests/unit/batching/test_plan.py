"""The plan: every example once, the same steps for any world, balanced shares, rows that fit."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intel_ft.batching.plan import Plan
from intel_ft.batching.row import IGNORED, build_row, pad_row
from intel_ft.batching.share import pack, split_by_cost
from intel_ft.errors import UserError
from intel_ft.templates.examples import Examples

WORLDS = (1, 2, 3, 4, 8)


def make_plan(lengths, batch=4, row=64, seed=0, **settings) -> Plan:
    lengths = np.array(lengths, dtype=np.int64)
    return Plan(lengths, np.maximum(lengths // 2, 1), batch, row, seed, **settings)


@st.composite
def plans(draw) -> Plan:
    lengths = draw(st.lists(st.integers(1, 64), min_size=1, max_size=60))
    return make_plan(
        lengths,
        batch=draw(st.integers(1, 20)),
        row=draw(st.integers(max(lengths), 200)),
        seed=draw(st.integers(0, 2**32 - 1)),
        quadratic_cost=draw(st.sampled_from([0.0, 1e-3, 0.5])),
        one_example_a_row=draw(st.booleans()),
        together=_together(draw, len(lengths)) if draw(st.booleans()) else None,
    )


def _together(draw, count: int) -> np.ndarray:
    """Random groups: of each example the first one that it belongs to."""
    groups = draw(st.lists(st.integers(0, count // 2), min_size=count, max_size=count))
    return np.array([groups.index(group) for group in groups], dtype=np.int64)


@given(plans(), st.integers(0, 30))
def test_shares_are_disjoint_and_together_the_step_in_any_world(plan, index) -> None:
    step = plan.step(index)
    for world in WORLDS:
        shares = step.shares(world)
        assert len(shares) == world
        assert sorted(np.concatenate(shares)) == sorted(step.examples)
        assert len(set(np.concatenate(shares).tolist())) == len(step.examples)


@given(plans(), st.sampled_from(WORLDS), st.integers(0, 3))
def test_an_epoch_holds_every_example_once(plan, world, epoch) -> None:
    n = plan.steps_per_epoch
    seen = [
        example
        for step in plan.steps(epoch * n, (epoch + 1) * n)
        for rank in range(world)
        for row in step.rows(rank, world)
        for example in row.tolist()
    ]
    assert sorted(seen) == list(range(len(plan.lengths)))


@given(plans())
def test_steps_hold_the_batch_size_and_count_their_supervised_tokens(plan) -> None:
    steps = list(plan.steps(0, plan.steps_per_epoch))
    sizes = [len(step.examples) for step in steps]
    assert all(size == plan.global_batch_size for size in sizes[:-1])
    assert 1 <= sizes[-1] <= plan.global_batch_size
    for step in steps:
        for world in WORLDS:
            counted = sum(int(plan.supervised[share].sum()) for share in step.shares(world))
            assert counted == step.supervised_tokens


@given(plans(), st.sampled_from(WORLDS))
def test_rows_never_exceed_their_capacity(plan, world) -> None:
    step = plan.step(0)
    for rank in range(world):
        rows = step.rows(rank, world)
        assert sorted(e for row in rows for e in row) == sorted(step.shares(world)[rank])
        assert all(len(row) > 0 for row in rows)
        assert all(plan.lengths[row].sum() <= plan.max_tokens_per_row for row in rows)
        if plan.one_example_a_row:
            assert all(len(row) == 1 for row in rows)


@given(st.lists(st.integers(1, 64), max_size=50), st.integers(64, 200))
def test_packing_leaves_no_two_rows_that_would_fit_into_one(lengths, capacity) -> None:
    rows = pack(lengths, capacity)
    totals = sorted(sum(lengths[position] for position in row) for row in rows)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    assert all(total <= capacity for total in totals)
    if len(totals) > 1:
        assert totals[0] + totals[1] > capacity


def test_a_plan_is_deterministic_in_seed_and_step() -> None:
    def examples(seed, index):
        return make_plan(range(1, 41), batch=8, seed=seed).step(index).examples.tolist()

    assert examples(7, 3) == examples(7, 3)
    assert examples(7, 0) != examples(8, 0)
    assert examples(7, 0) != examples(7, 5)  # five steps an epoch: the same place in the next one
    assert examples(7, 0) != list(range(8))


@given(plans(), st.integers(0, 20), st.integers(0, 10))
def test_a_step_is_the_same_asked_directly_or_walked_to(plan, start, count) -> None:
    walked = list(plan.steps(start, start + count))
    assert [step.index for step in walked] == list(range(start, start + count))
    for step in walked:
        direct = plan.step(step.index)
        assert direct.examples.tolist() == step.examples.tolist()
        assert direct.supervised_tokens == step.supervised_tokens
        for one, other in zip(direct.rows(1, 3), step.rows(1, 3), strict=True):
            assert one.tolist() == other.tolist()


def test_fewer_examples_than_ranks_leave_shares_empty() -> None:
    step = make_plan([5, 6, 7], batch=8).step(0)
    assert sorted(len(share) for share in step.shares(8)) == [0, 0, 0, 0, 0, 1, 1, 1]
    empty = [rank for rank, share in enumerate(step.shares(8)) if len(share) == 0]
    assert all(step.rows(rank, 8) == [] for rank in empty)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=7), st.integers(1, 3))
def test_the_dearest_share_is_at_most_four_thirds_of_the_best_possible(costs, world) -> None:
    def dearest(assignment) -> float:
        loads = [0.0] * world
        for cost, rank in zip(costs, assignment, strict=True):
            loads[rank] += cost
        return max(loads)

    best = min(map(dearest, itertools.product(range(world), repeat=len(costs))))
    shares = split_by_cost(costs, world)
    found = max(sum(costs[position] for position in share) for share in shares)
    assert found <= (4 / 3 - 1 / (3 * world)) * best * (1 + 1e-9)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=200), st.sampled_from(WORLDS))
def test_shares_differ_by_no_more_than_one_example(costs, world) -> None:
    loads = [sum(costs[position] for position in share) for share in split_by_cost(costs, world)]
    assert max(loads) <= sum(costs) / world + (1 - 1 / world) * max(costs) + 1e-9


def test_long_examples_weigh_more_where_attention_is_dear() -> None:
    lengths = [64, 32, 32]
    even = make_plan(lengths).step(0)
    squared = make_plan(lengths, quadratic_cost=100.0).step(0)
    dear = [sorted(even.plan.lengths[share].tolist()) for share in even.shares(2)]
    assert sorted(dear) == [[32, 32], [64]]
    # 64^2 is more than twice 32^2, so four short ones go to the other rank.
    many = make_plan([64, 32, 32, 32, 32], batch=5, quadratic_cost=100.0).step(0)
    assert sorted(len(share) for share in many.shares(2)) == [1, 4]
    assert sorted(len(share) for share in squared.shares(2)) == [1, 2]


def test_no_examples_is_an_error() -> None:
    with pytest.raises(UserError, match="no examples to train on"):
        make_plan([])


def test_an_example_longer_than_a_row_is_an_error_that_says_what_to_change() -> None:
    expected = (
        r"has 65 tokens, but a row holds 64: raise train\.max_tokens_per_row or lower data\.max"
    )
    with pytest.raises(UserError, match=expected):
        make_plan([3, 65])
    make_plan([3, 64])


@given(st.data())
def test_a_row_is_its_examples_end_to_end(data) -> None:
    masks = data.draw(
        st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=6)
    )
    supervised = np.concatenate([[False, *mask] for mask in masks])
    offsets = np.cumsum([0, *(1 + len(mask) for mask in masks)])
    examples = Examples(np.arange(100, 100 + offsets[-1], dtype=np.int32), supervised, offsets)
    chosen = data.draw(st.lists(st.sampled_from(range(len(masks))), min_size=1, unique=True))
    row = build_row(examples, np.array(chosen))

    tokens, positions, wanted = [], [], []
    for index in chosen:
        ids, mask = examples[index]
        wanted += [(len(tokens) + at - 1, int(ids[at])) for at in np.flatnonzero(mask)]
        tokens += ids.tolist()
        positions += range(len(ids))
    assert row.tokens.tolist() == tokens
    assert row.positions.tolist() == positions
    assert row.segment_lengths.tolist() == [1 + len(masks[index]) for index in chosen]
    assert row.bounds.tolist()[0] == 0
    assert list(zip(row.predict.tolist(), row.targets.tolist(), strict=True)) == wanted
    assert row.shared is None
    arrays = (row.tokens, row.positions, row.bounds, row.predict, row.targets)
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 64))
def test_filling_a_row_up_adds_a_segment_and_ignored_targets_behind_it(lengths, quantum) -> None:
    offsets = np.cumsum([0, *lengths])
    supervised = np.arange(offsets[-1]) % 3 == 1
    supervised[offsets[:-1]] = False
    examples = Examples(np.arange(1, 1 + offsets[-1], dtype=np.int32), supervised, offsets)
    row = build_row(examples, np.arange(len(lengths)))
    padded = [-(-len(part) // quantum) * quantum for part in (row.tokens, row.targets)]
    full = pad_row(row, *padded)
    length, targets = len(row.tokens), len(row.targets)
    assert len(full.tokens) == len(full.positions) == -(-length // quantum) * quantum
    assert len(full.predict) == len(full.targets) == -(-targets // quantum) * quantum
    assert full.tokens[:length].tolist() == row.tokens.tolist()
    assert full.positions[:length].tolist() == row.positions.tolist()
    assert full.predict[:targets].tolist() == row.predict.tolist()
    assert full.targets[:targets].tolist() == row.targets.tolist()
    assert set(full.targets[targets:].tolist()) <= {IGNORED}
    assert full.bounds[: len(row.bounds)].tolist() == row.bounds.tolist()
    assert full.bounds[-1] == len(full.tokens)
    assert len(full.bounds) - len(row.bounds) == (len(full.tokens) > length)


_MILLION = """
import sys, time
from pathlib import Path
import numpy as np
from intel_ft.batching.plan import Plan
assert "torch" not in sys.modules and "transformers" not in sys.modules
lengths = np.random.default_rng(0).integers(16, 1024, 1_000_000)
cpu = time.process_time()
plan = Plan(lengths, lengths // 2, 256, 2048, 0, 1e-4)
seen = rows = 0
for step in plan.steps(0, plan.steps_per_epoch):
    for share in step.shares(8):
        packed = plan.rows(share)
        rows += len(packed)
        seen += sum(len(row) for row in packed)
assert seen == 1_000_000
# Not ru_maxrss: a process starts with that of the one that started it.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
kib = int(status["VmHWM"].split()[0])
print(time.process_time() - cpu, kib / 2**20)
"""


def test_a_million_examples_are_planned_in_ten_seconds_and_one_gib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MILLION], capture_output=True, text=True, check=True
    )
    seconds, gib = map(float, done.stdout.split())
    assert seconds < 10
    assert gib < 1
