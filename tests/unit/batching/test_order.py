"""The order of an epoch where sources have weights: shares, passes, seed and step alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intel_ft.batching.order import epoch_order, neighbours
from intel_ft.batching.plan import Plan
from intel_ft.data.mixture import Part, parts_of
from intel_ft.errors import UserError


def mixed(counts, weights, batch=4, seed=0) -> Plan:
    names = [f"source {place}" for place in range(len(counts))]
    lengths = np.arange(sum(counts)) % 7 + 1
    parts = tuple(parts_of(names, counts, weights))
    return Plan(lengths, np.maximum(lengths // 2, 1), batch, 64, seed, parts=parts)


def sources_of(plan, examples):
    return np.searchsorted(np.cumsum([part.examples for part in plan.parts]), examples, "right")


mixtures = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(1, 40), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.5, 1.0, 2.0, 7.0]), min_size=n, max_size=n),
    )
)


@given(mixtures)
def test_parts_are_the_weights_shares_of_as_many_examples_as_there_are(mixture) -> None:
    counts, weights = mixture
    try:
        parts = parts_of(["x"] * len(counts), counts, weights)
    except UserError:
        assert min(weights) / sum(weights) * sum(counts) < 1
        return
    assert sum(part.per_epoch for part in parts) == sum(counts)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part.per_epoch - sum(counts) * weight / sum(weights)) < 1


@given(st.integers(1, 9), st.integers(1, 25), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_no_example_of_a_source_is_seen_again_before_all_others(size, taken, epochs, seed) -> None:
    parts = (Part(size, taken), Part(3, 2))
    orders = [epoch_order(seed, epoch, size + 3, parts) for epoch in range(epochs)]
    assert all(len(order) == taken + 2 for order in orders)
    times = np.bincount(np.concatenate([[], *orders]).astype(int), minlength=size + 3)
    assert times[:size].max() - times[:size].min() <= 1
    assert times[:size].sum() == epochs * taken and times[size:].sum() == epochs * 2


def test_without_parts_an_epoch_is_a_permutation() -> None:
    assert sorted(epoch_order(3, 1, 20)) == list(range(20))


def test_shares_over_10_000_steps_are_those_of_the_weights() -> None:
    plan = mixed([300, 4000, 50], [7, 2, 1], batch=8)
    steps, batch = 10_000, plan.global_batch_size
    drawn = np.concatenate([plan.step(index).examples for index in range(steps)])
    shares = np.bincount(sources_of(plan, drawn)) / len(drawn)
    # Whole epochs have exact shares; the last one adds at most its own sampling error.
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=1 / len(plan.lengths) + 0.002)
    assert steps * batch - plan.steps_per_epoch < len(drawn) <= steps * batch


@given(mixtures, st.integers(0, 40), st.sampled_from([2, 4, 7]))
def test_a_mixture_is_the_same_in_any_world_and_after_a_kill(mixture, index, world) -> None:
    try:
        plan, again = mixed(*mixture), mixed(*mixture)
    except UserError:
        return
    walked = [step.examples.tolist() for step in plan.steps(0, index + 1)][-1]
    step = again.step(index)  # a resumed run begins with it
    assert step.examples.tolist() == walked
    shared = np.concatenate(step.shares(world)).tolist()
    assert sorted(shared) == sorted(walked)


def test_another_seed_is_another_order() -> None:
    orders = [mixed([30, 10], [1, 1], seed=seed).step(3).examples.tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_a_weight_that_gives_no_example_is_refused() -> None:
    with pytest.raises(UserError, match=r"b\.jsonl: its weight is so low that an epoch of 20"):
        parts_of(["a.jsonl", "b.jsonl"], [10, 10], [1.0, 1e-3])


def test_10_million_examples_are_planned_in_little_memory() -> None:
    count = 1_000_000  # a tenth: the arrays grow with it
    import tracemalloc

    tracemalloc.start()
    lengths = np.full(count, 100, np.int64)
    parts = (Part(count // 4, count // 2), Part(count - count // 4, count - count // 2))
    plan = Plan(lengths, lengths // 2, 16, 2048, 0, parts=parts)
    last = plan.steps_per_epoch - 1
    for index in (0, last, last + 1):  # two epochs, as where one ends
        plan.step(index).rows(0, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 10 * peak < 2**30


def test_answers_to_one_prompt_follow_each_other_in_the_same_order_of_prompts() -> None:
    together = np.arange(12) // 3 * 3  # three answers to each of four prompts
    order = epoch_order(5, 0, 12)
    grouped = neighbours(order, together, 3)
    assert sorted(grouped) == list(range(12))
    prompts = together[grouped].reshape(4, 3)
    assert (prompts == prompts[:, :1]).all()
    _, firsts = np.unique(together[order], return_index=True)
    assert prompts[:, 0].tolist() == together[order][sorted(firsts)].tolist()
    pairs = together[neighbours(order, together, 2)]
    runs = np.diff(np.flatnonzero(np.diff(pairs, prepend=-1, append=-1)))
    assert runs.max() <= 4 and np.bincount(pairs).max() == 3  # two pieces may meet by chance
    assert np.array_equal(neighbours(order, together, 1), order)
    assert np.array_equal(neighbours(order, np.arange(12), 4), order)


def test_a_source_that_is_passed_through_twice_is_not_trained_on_twice_in_a_row() -> None:
    order = np.array([0, 3, 1, 2, 3, 0, 2, 1])
    grouped = neighbours(order, np.array([0, 0, 2, 2]), 4)
    assert grouped.tolist() == [0, 1, 3, 2, 3, 2, 0, 1]


def test_a_step_has_answers_to_four_prompts_or_more() -> None:
    ones = np.ones(64, np.int64)
    together = np.arange(64) // 16 * 16
    plan = Plan(ones, ones, 16, 64, 0, together=together)
    for step in plan.steps(0, plan.steps_per_epoch):
        assert np.unique(step.examples).size == 16
    pieces = [together[plan.step(index).examples].reshape(4, 4) for index in range(4)]
    assert all((piece == piece[:, :1]).all() for piece in pieces)
