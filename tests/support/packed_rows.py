"""A tiny model with packed attention and its equal without, and how their steps are compared."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from intel_ft.batching.plan import Plan
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.models.adapter import add_lora
from intel_ft.models.load import load_base, load_for_packing
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


def make_plan(examples: Examples, capacity: int = 10_000, **more) -> Plan:
    return Plan(
        lengths=examples.lengths,
        supervised=examples.supervised_counts,
        global_batch_size=len(examples),
        max_tokens_per_row=capacity,
        seed=0,
        quadratic_cost=1e-3,
        **more,
    )


def gradients(model) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    assert found
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(found)
    model.zero_grad()
    return found


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
