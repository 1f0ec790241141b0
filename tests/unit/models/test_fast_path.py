"""backend.compile: compiled layers compute what the fused ones do, for rows of any shape."""

import copy

import pytest
import torch
from support.model_fixtures import SHAPE, row_of
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from intel_ft.config import build
from intel_ft.layers.packed_attention import NAME
from intel_ft.models.adapter import add_lora
from intel_ft.models.fast_path import apply_fast_path
from intel_ft.models.loss import loss_sum


def config(**backend):
    values = {"model": {"name_or_path": "-"}, "data": {"train": "-"}, "method": {"r": 4}}
    return build({**values, "backend": backend, "output": {"directory": "-"}}, "test")


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = SHAPE | {"num_hidden_layers": 1}  # compiling takes seconds a layer
    base = LlamaForCausalLM(LlamaConfig(**shape)).requires_grad_(False)
    base.set_attn_implementation(NAME)
    adapted = add_lora(base, config().method, "base", None)
    for name, weight in adapted.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    return adapted


def reasons_by_name(decisions):
    return {decision.name: (decision.value, decision.reason) for decision in decisions}


def gradients(model, row):
    model.zero_grad()
    loss = loss_sum(model, row, packed=True)
    loss.backward()
    return loss, {name: w.grad for name, w in model.named_parameters() if w.requires_grad}


def test_compiled_layers_train_as_the_fused_ones_do(model):
    compiled = copy.deepcopy(model)
    fused = reasons_by_name(apply_fast_path(model, config(), 0))
    assert fused["backend.compile"] == ("off", "slower in our measurements (docs/ipex.md)")
    assert fused["decoder layers"][0] == "fused"
    decisions = reasons_by_name(apply_fast_path(compiled, config(compile=True), 0))
    assert decisions["backend.compile"][0] == "on"
    assert decisions["backend.prepack"][0] == "off" and "decoder layers" not in decisions
    counters.clear()
    made = []
    for lengths in ((9, 5, 20), (150, 11), (3, 40, 7, 60, 31, 70)):
        (loss, grads), (wanted, known) = (gradients(m, row_of(*lengths)) for m in (compiled, model))
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)
        for name, grad in known.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-4)
        made.append(counters["stats"]["unique_graphs"])
    assert made[0] > 0, "nothing was compiled"
    assert made[-1] == made[0], "another row was compiled anew"


def test_who_sets_it_off_is_told_so(model):
    decisions = reasons_by_name(apply_fast_path(model, config(compile=False), 0))
    assert decisions["backend.compile"] == ("off", "set in the config")


def test_ipex_finds_the_layers_as_they_are(model):
    kinds = [type(module) for module in model.modules()]
    decisions = reasons_by_name(apply_fast_path(model, config(name="ipex"), 0))
    assert decisions["decoder layers"] == ("not fused", "IPEX replaces their linear layers")
    assert [type(module) for module in model.modules()] == kinds
    assert not hasattr(model.get_base_model().get_decoder(), "has_fused_layers")
