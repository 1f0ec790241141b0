"""Parts of the training step that gradients do not show: dropout's seeds, and rank imbalance."""

import numpy as np
import pytest
import torch

from intel_ft.batching.plan import Plan
from intel_ft.training.clipping import clip_gradients
from intel_ft.training.step import dropout_seed, rank_imbalance


def test_each_step_and_rank_has_its_own_seed_and_every_process_the_same() -> None:
    places = [(seed, step, rank) for seed in (0, 1) for step in range(50) for rank in range(8)]
    seeds = [dropout_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert dropout_seed(42, 7, 3) == 8545672181732416458  # a resumed run must not draw others


def make_plan(lengths: list[int], quadratic_cost: float) -> Plan:
    counts = np.array(lengths, dtype=np.int64)
    return Plan(counts, counts - 1, len(lengths), 4096, 0, quadratic_cost)


def test_imbalance_is_measured_in_the_cost_that_the_plan_balances() -> None:
    # By tokens 1000 and 4 * 250 are even; with attention's cost the long example is the larger.
    step = make_plan([1000, 250, 250, 250, 250], quadratic_cost=1e-3).step(0)
    long, short = 1000 + 1e-3 * 1000**2, 4 * (250 + 1e-3 * 250**2)
    assert rank_imbalance(step, 2) == pytest.approx(2 * long / (long + short) - 1)
    even = make_plan([1000, 250, 250, 250, 250], quadratic_cost=0.0).step(0)
    assert rank_imbalance(even, 2) == 0
    assert rank_imbalance(step, 1) == 0


def test_ranks_without_examples_count_as_idle() -> None:
    assert rank_imbalance(make_plan([100, 100], 0.0).step(0), 4) == pytest.approx(1.0)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_gradients_are_clipped_as_by_torch(max_norm) -> None:
    shapes = ((3, 5), (7,), (), (2, 3, 4), (0, 4))
    weights = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn(weight.shape)
    own = [weight.grad.clone() for weight in weights]
    expected = torch.nn.utils.clip_grad_norm_(weights, max_norm)
    torch.testing.assert_close(clip_gradients(own, max_norm), expected)
    for gradient, weight in zip(own, weights, strict=True):
        torch.testing.assert_close(gradient, weight.grad)
    assert clip_gradients([], max_norm) == 0
