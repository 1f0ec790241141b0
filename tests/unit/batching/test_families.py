"""Families of examples come into one row and to one rank, as far as the balance of ranks allows."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intel_ft.batching.families import Families
from intel_ft.batching.forest import forest_of, sort_sequences
from intel_ft.batching.plan import Plan
from intel_ft.batching.row import build_row
from intel_ft.templates.answers import pairs_of
from intel_ft.templates.examples import Examples


def examples_of(*sequences) -> Examples:
    """Examples of these token ids; the last token of each is supervised."""
    ends = np.cumsum([0, *map(len, sequences)])
    supervised = np.zeros(ends[-1], dtype=bool)
    supervised[ends[1:] - 1] = True
    return Examples(np.concatenate(sequences).astype(np.int32), supervised, ends)


def families_of(prompts: int, each: int, prompt: int, answer: int) -> Examples:
    """`each` answers to every prompt, the families mixed as an epoch's order mixes them."""
    random = np.random.default_rng(0)
    asked = [random.integers(0, 1000, prompt) for _ in range(prompts)]
    parts = [np.concatenate((one, random.integers(0, 1000, answer))) for one in asked * each]
    return examples_of(*(parts[index] for index in random.permutation(len(parts))))


def plan_of(examples, capacity=4096, **more) -> Plan:
    counts = examples.lengths, examples.supervised_counts
    return Plan(*counts, len(examples), capacity, 0, shared=examples, **more)


def test_the_worked_example_of_forest() -> None:
    lengths, common = [60, 60, 40, 20], [0, 50, 30, 0]
    assert [tuple(one) for one in forest_of(lengths, common)] == [
        (0, 30, -1, 0, 3),
        (30, 50, 0, 0, 2),
        (50, 60, 1, 0, 1),
        (50, 60, 1, 1, 2),
        (30, 40, 0, 2, 3),
        (0, 20, -1, 3, 4),
    ]


def test_sequences_are_sorted_by_ids_and_not_by_bytes() -> None:
    order, common = sort_sequences(
        [np.array(ids, dtype=np.int32) for ids in ([256, 1], [1, 256], [1, 2, 9], [256, 1], [1])]
    )
    assert order == [4, 2, 1, 0, 3]
    assert common == [0, 1, 1, 0, 2]


def test_a_beginning_that_saves_little_is_computed_again() -> None:
    assert len(forest_of([20, 20], [0, 15])) == 2
    assert len(forest_of([20, 20], [0, 16])) == 3
    assert len(forest_of([20, 20], [0, 20])) == 1  # the second equals the first
    assert len(forest_of([20, 20, 20], [0, 8, 8])) == 4  # 8 tokens twice


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_has_whole_families(ranks) -> None:
    examples = families_of(prompts=4, each=4, prompt=200, answer=20)
    step = plan_of(examples).step(0)
    rows = [row for rank in range(ranks) for row in step.rows(rank, ranks)]
    tokens = [len(build_row(examples, row, share=True).tokens) for row in rows]
    assert tokens == [4 // ranks * (200 + 4 * 20)] * ranks


def test_ranks_that_would_wait_compute_a_beginning_each() -> None:
    examples = families_of(prompts=1, each=8, prompt=100, answer=200)
    step = plan_of(examples).step(0)
    assert [len(share) for share in step.shares(4)] == [2] * 4
    assert {step.plan.load(share) for share in step.shares(4)} == {500}


def test_rows_are_cut_between_families() -> None:
    examples = families_of(prompts=5, each=3, prompt=100, answer=30)
    rows = plan_of(examples, capacity=400).step(0).rows(0, 1)
    tokens = [len(build_row(examples, row, share=True).tokens) for row in rows]
    assert sorted(tokens) == [190, 380, 380]


def test_a_pair_stays_whole_and_shares_its_prompt() -> None:
    answers = families_of(prompts=6, each=1, prompt=50, answer=40)
    twice = [answers[index // 2][0] for index in range(12)]
    pairs = pairs_of(examples_of(*(np.append(one, i) for i, one in enumerate(twice))))
    rows = plan_of(pairs, capacity=200).step(0).rows(0, 1)
    assert sorted(chain(*map(list, rows))) == list(range(6))
    assert [len(row) for row in rows] == [2, 2, 2]  # of 92 tokens each, not of 182
    row = build_row(pairs, rows[0], share=True)
    assert row.read_by()[0] == 4
    assert row.targets[row.read_by()[2]].tolist() == [
        *(number for pair in rows[0] for number in (2 * pair, 2 * pair + 1))
    ]


def test_without_anything_in_common_rows_and_shares_are_those_of_lengths() -> None:
    examples = families_of(prompts=9, each=1, prompt=60, answer=30)
    step, plain = plan_of(examples, 256).step(0), plan_of(examples, 256)
    plain = Plan(plain.lengths, plain.supervised, 9, 256, 0).step(0)
    for rank in range(2):
        for one, other in zip(step.rows(rank, 2), plain.rows(rank, 2), strict=True):
            assert one.tolist() == other.tolist()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_example_once_in_rows_that_fit_and_cost_what_they_are(data) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    parts = []
    for _ in range(data.draw(st.integers(1, 12))):
        begin = data.draw(st.sampled_from([np.empty(0, np.int64), *parts]))
        begin = begin[: data.draw(st.integers(0, len(begin)))]
        more = random.integers(0, 3, data.draw(st.integers(0 if len(begin) > 1 else 2, 50)))
        parts.append(np.concatenate((begin, more)))
    examples = examples_of(*parts)
    capacity = int(examples.lengths.max()) + data.draw(st.integers(0, 60))
    plan = plan_of(examples, capacity, quadratic_cost=0.01)
    ranks = data.draw(st.sampled_from([1, 2, 3]))
    seen = []
    for rank in range(ranks):
        for indices in plan.step(0).rows(rank, ranks):
            row = build_row(examples, indices, share=True)
            families = Families(examples, indices, 0.01)
            everything = range(len(indices))
            assert len(row.tokens) == families.tokens(everything) <= capacity
            assert families.saved == examples.lengths[indices].sum() - len(row.tokens)
            assert families.cost(everything) == pytest.approx(len(row.tokens) + 0.01 * row.squares)
            seen += indices.tolist()
    assert sorted(seen) == list(range(len(examples)))
