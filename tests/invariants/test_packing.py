"""Packing is exact: a packed row gives the loss and gradients of its examples run one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from intel_ft.batching.plan import Plan
from intel_ft.batching.row import build_row
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.layers.packed_attention import row_inputs
from intel_ft.models.adapter import add_lora
from intel_ft.models.load import load_base, load_for_packing
from intel_ft.models.loss import loss_sum
from intel_ft.templates.examples import Examples

VOCABULARY = 97
few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """So small a model is slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["multi-head", "grouped", "multi-query"])
def models(request, tmp_path_factory) -> SimpleNamespace:
    """Equal weights twice: ours with packed attention, and plain Transformers."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads={"multi-head": 4, "grouped": 2, "multi-query": 1}[request.param],
        initializer_range=0.15,  # scores large enough that attention is far from uniform
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    settings = ModelConfig(name_or_path=str(folder))
    method = MethodConfig(r=4, alpha=8)
    base, reason = load_for_packing(settings, torch.float32)
    assert reason is None
    ours = add_lora(base, method, "base", None)
    plain = add_lora(load_base(settings, torch.float32, "sdpa"), method, "base", None)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                assert "lora_" in name
                parameter.normal_(std=0.2)
                plain.get_parameter(name).copy_(parameter)
    return SimpleNamespace(ours=ours, plain=plain)


@st.composite
def example_sets(draw) -> Examples:
    masks = draw(
        st.lists(st.lists(st.booleans(), min_size=1, max_size=24), min_size=1, max_size=7).filter(
            lambda masks: any(map(any, masks))
        )
    )
    supervised = np.concatenate([[False, *mask] for mask in masks])
    offsets = np.cumsum([0, *(1 + len(mask) for mask in masks)])
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens = random.integers(0, VOCABULARY, offsets[-1]).astype(np.int32)
    return Examples(tokens, supervised, offsets)


def make_plan(examples: Examples, capacity: int = 10_000, one_example_a_row=False) -> Plan:
    return Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=len(examples),
        max_tokens_per_row=capacity,
        seed=0,
        quadratic_cost=1e-3,
        one_example_a_row=one_example_a_row,
    )


def gradients(model) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert found
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(found)
    model.zero_grad()
    return found


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


def one_by_one(model, examples):
    """The same from plain Transformers: an example at a time, its own attention, labels, mean."""
    total = torch.zeros((), dtype=torch.float64)
    for index in range(len(examples)):
        tokens, supervised = map(torch.from_numpy, examples[index])
        tokens = tokens.long()
        labels = torch.where(supervised, tokens, -100)
        if supervised.any():
            mean = model(input_ids=tokens[None], labels=labels[None]).loss
            loss = mean * supervised.sum()
            loss.backward()
            total += loss.detach()
    return total, gradients(model)


def assert_equal(one, other, relative=1e-5) -> None:
    """Compare loss and each gradient to a relative error of `relative`.

    A gradient that is zero but for rounding may be off by a tenth of that of all gradients.
    """
    torch.testing.assert_close(one[0], other[0], rtol=relative, atol=0)
    whole = torch.cat([gradient.flatten() for gradient in one[1].values()]).norm()
    for name, gradient in one[1].items():
        error = (gradient - other[1][name]).norm()
        assert error <= relative * (gradient.norm() + 0.1 * whole), name


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
