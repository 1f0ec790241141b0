"""Shared beginnings are exact: a row that has them once gives what its examples give one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packed_rows import (
    VOCABULARY,
    assert_equal,
    example_sets,
    few,
    gradients,
    make_plan,
    models,
    one_by_one,
    one_thread,
)

from intel_ft.batching.row import build_row
from intel_ft.layers.packed_attention import row_inputs
from intel_ft.models.answer_log_probs import answer_log_probs
from intel_ft.models.loss import loss_sum
from intel_ft.templates.examples import Examples

__all__ = ["models", "one_thread"]  # fixtures

# One kind of heads: those of the kernels are tested in tests/unit/kernels.
grouped = pytest.mark.parametrize("models", ["grouped"], indirect=True)


@st.composite
def forests(draw) -> Examples:
    """Examples that continue beginnings of earlier ones, equal them, or share nothing."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(draw(st.integers(2, 7))):
        begin = draw(st.sampled_from([None, *parts, *parts]))
        cut = 0 if begin is None else draw(st.integers(1, len(begin[0])))
        more = draw(st.integers(1 if begin is None else 0, 40))
        tokens = random.integers(0, VOCABULARY, max(cut + more, 2)).astype(np.int32)
        supervised = random.random(len(tokens)) < draw(st.sampled_from([0.2, 0.9]))
        if begin is not None:
            tokens[:cut] = begin[0][:cut]
            if draw(st.booleans()):  # as where prompts are trained on
                supervised[:cut] = begin[1][:cut]
        supervised[0] = False
        supervised[-1] = True
        parts.append((tokens, supervised))
    ends = np.cumsum([0, *(len(tokens) for tokens, _ in parts)])
    tokens, supervised = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Examples(tokens, supervised, ends)


def shared(model, examples, capacity=10_000, world=1):
    """Loss and gradients of one global step, summed over all ranks' rows."""
    total = torch.zeros((), dtype=torch.float64)
    step = make_plan(examples, capacity, shared=examples).step(0)
    for rank in range(world):
        for indices in step.rows(rank, world):
            row = build_row(examples, indices, share=True)
            assert len(row.tokens) <= capacity
            loss = loss_sum(model, row, packed=True)
            loss.backward()
            total += loss.detach()
    return total, gradients(model)


@grouped
@few
@given(examples=forests(), world=st.sampled_from([1, 2, 4]), extra=st.sampled_from([0, 30, 9000]))
def test_losses_and_gradients_are_those_of_the_examples_one_by_one(
    models, examples, world, extra
) -> None:
    capacity = int(examples.lengths.max()) + extra
    assert_equal(shared(models.ours, examples, capacity, world), one_by_one(models.plain, examples))


@grouped
@settings(few, max_examples=12)
@given(examples=forests())
def test_the_log_probability_of_each_answer_is_that_of_the_answer_alone(models, examples) -> None:
    everything = np.arange(len(examples))
    row = build_row(examples, everything, share=True)
    random = torch.rand(len(examples), dtype=torch.float64, generator=torch.manual_seed(0)) - 0.5

    def of_rows(rows):
        found = torch.cat([answer_log_probs(models.ours, row, packed=True) for row in rows])
        (found * random).sum().backward()
        return found.detach(), gradients(models.ours)

    alone = of_rows([build_row(examples, everything[[index]]) for index in everything])
    assert_equal(of_rows([row]), alone)


@grouped
@few
@given(examples=forests(), data=st.data())
@torch.no_grad()
def test_changing_one_branch_leaves_the_others_as_they_were(models, examples, data) -> None:
    row = build_row(examples, np.arange(len(examples)), share=True)
    segments = len(row.bounds) - 1
    parents = np.full(segments, -1) if row.shared is None else row.shared.parents
    changed = np.zeros(segments, dtype=bool)
    changed[data.draw(st.integers(0, segments - 1), label="changed segment")] = True
    tokens = torch.from_numpy(row.tokens)
    inside = torch.from_numpy(np.repeat(changed, row.segment_lengths))
    other = torch.where(inside, (tokens + 1) % VOCABULARY, tokens)
    for segment, parent in enumerate(parents):  # what follows the changed one
        changed[segment] |= parent >= 0 and changed[parent]
    same = torch.from_numpy(np.repeat(~changed, row.segment_lengths))

    def logits(tokens):
        arrays = map(torch.from_numpy, (row.positions, row.bounds, parents))
        return models.ours(**row_inputs(tokens, *arrays)).logits[0]

    before, after = logits(tokens), logits(other)
    assert torch.equal(before[same], after[same])
    assert (before[~same] != after[~same]).any(1).all()


@few
@given(examples=example_sets() | forests())
def test_a_row_has_each_example_and_each_common_beginning_once(examples) -> None:
    """Read back: each example's tokens along its chain, and what is predicted for it."""
    row = build_row(examples, np.arange(len(examples)), share=True)
    count, read_by, reads = row.read_by()
    assert count == len(examples)
    for index in range(len(examples)):
        tokens, supervised = examples[index]
        own = reads[read_by == index]
        assert sorted(row.targets[own]) == sorted(tokens[supervised])
        places = [np.flatnonzero(supervised)[0] - 1] if supervised.any() else []
        assert set(places) <= set(row.positions[row.predict[own]])
    weights = np.ones(len(row.targets)) if row.weights is None else row.weights
    assert weights.sum() == examples.supervised_counts.sum()
    assert len(row.tokens) <= examples.lengths.sum()
    assert (len(row.tokens) < examples.lengths.sum()) == (row.shared is not None)
