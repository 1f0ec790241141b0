"""Packing is exact: a packed row gives the loss and gradients of its examples run one by one."""

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
from intel_ft.models.loss import loss_sum

__all__ = ["models", "one_thread"]  # fixtures


def packed(model, examples, capacity=10_000, world=1):
    """Loss and gradients of one global step, summed over all ranks' rows."""
    total = torch.zeros((), dtype=torch.float64)
    step = make_plan(examples, capacity).step(0)
    for rank in range(world):
        for indices in step.rows(rank, world):
            loss = loss_sum(model, build_row(examples, indices), packed=True)
            loss.backward()
            total += loss.detach()
    return total, gradients(model)


@few
@given(examples=example_sets())
def test_a_packed_row_equals_its_examples_one_by_one(models, examples) -> None:
    assert_equal(packed(models.ours, examples), one_by_one(models.plain, examples))


@few
@given(examples=example_sets(), extra=st.integers(0, 80), world=st.sampled_from([1, 2, 3, 4, 8]))
def test_capacity_and_world_size_change_nothing(models, examples, extra, world) -> None:
    capacity = int(examples.lengths.max()) + extra
    known = packed(models.ours, examples)
    assert_equal(packed(models.ours, examples, capacity, world), known)


@few
@given(examples=example_sets())
def test_activation_checkpointing_changes_nothing(models, examples) -> None:
    model = models.ours
    known = packed(model, examples)
    model.train()  # checkpointing works in training mode only; there is no dropout
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = []
    layer = model.get_base_model().model.layers[0]
    hook = layer.register_forward_pre_hook(lambda *_: layers.append(0))
    try:
        assert_equal(packed(model, examples, capacity=40), known)
    finally:
        hook.remove()
        model.gradient_checkpointing_disable()
        model.eval()
    rows = len(make_plan(examples, 40).step(0).rows(0, 1))
    assert len(layers) > rows  # run again in the backward pass


@few
@given(examples=example_sets(), data=st.data())
@torch.no_grad()
def test_changing_one_segment_leaves_the_others_logits_as_they_were(models, examples, data) -> None:
    row = build_row(examples, np.arange(len(examples)))
    changed = data.draw(st.integers(0, len(examples) - 1), label="changed segment")
    start, end = row.bounds[changed], row.bounds[changed + 1]
    tokens = torch.from_numpy(row.tokens)
    other = tokens.clone()
    other[start:end] = (other[start:end] + data.draw(st.integers(1, VOCABULARY - 1))) % VOCABULARY

    def logits(tokens):
        positions, bounds = torch.from_numpy(row.positions), torch.from_numpy(row.bounds)
        return models.ours(**row_inputs(tokens, positions, bounds)).logits[0]

    before, after = logits(tokens), logits(other)
    same = torch.ones(len(tokens), dtype=torch.bool)
    same[start:end] = False
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[~same], after[~same])


@pytest.mark.parametrize("world", [2, 4])
@settings(few, max_examples=10)
@given(examples=example_sets())
def test_an_optimizer_step_is_the_same_in_any_world(models, world, examples) -> None:
    assert_close_weights(
        step_weights(models.ours, examples, 1), step_weights(models.ours, examples, world)
    )


def step_weights(model, examples, world) -> dict[str, torch.Tensor]:
    """LoRA weights after one AdamW step as DESIGN.md writes it, from the weights there are now.

    Each rank's loss is scaled by `world`, and the all-reduce takes the mean over ranks.
    """
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    step = make_plan(examples, capacity=40).step(0)
    shares = []
    for rank in range(world):
        for name, value in before.items():
            model.get_parameter(name).grad = torch.zeros_like(value)
        for indices in step.rows(rank, world):
            loss = loss_sum(model, build_row(examples, indices), packed=True)
            (loss * world / step.supervised_tokens).backward()
        shares.append(gradients(model))
    trained = [model.get_parameter(name) for name in before]
    for name, parameter in zip(before, trained, strict=True):
        parameter.grad = torch.stack([share[name] for share in shares]).mean(0)
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    # Adam's first step is a sign: this epsilon keeps it from blowing up a gradient's rounding.
    torch.optim.AdamW(trained, lr=1e-3, eps=1e-3).step()
    after = {name: model.get_parameter(name).detach().clone() for name in before}
    with torch.no_grad():
        for name, value in before.items():
            model.get_parameter(name).copy_(value)
    model.zero_grad()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    return after


def assert_close_weights(one, other) -> None:
    for name, weights in one.items():
        torch.testing.assert_close(weights, other[name], rtol=0, atol=1e-6)
