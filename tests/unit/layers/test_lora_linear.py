"""The fused LoRA layer against peft's own, and which layers are fused."""

import copy

import peft
import pytest
import torch
from support.model_fixtures import assert_step_as_exact_as_plain, same_dropout
from transformers import LlamaConfig, LlamaForCausalLM

from intel_ft.layers.lora_linear import fuse_linears

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
)


def adapted(dtype, **options):
    torch.manual_seed(0)
    base = LlamaForCausalLM._from_config(CONFIG, dtype=dtype).requires_grad_(False)
    lora = peft.LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **options)
    model = peft.get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def step(model, half):
    tokens = torch.arange(24).reshape(2, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def assert_close(found, wanted, bound=1e-5):
    loss, gradients = found
    assert loss == pytest.approx(wanted[0], rel=bound)
    whole = torch.cat([g.flatten() for g in wanted[1].values()]).norm()
    assert gradients.keys() == wanted[1].keys()
    for name, gradient in gradients.items():
        error = (gradient - wanted[1][name]).norm()
        assert error <= bound * (wanted[1][name].norm() + 0.1 * whole), name


def test_loss_and_every_gradient_equal_pefts():
    ours = adapted(torch.float32)
    theirs = copy.deepcopy(ours)
    assert fuse_linears(ours) == 14
    assert_close(step(ours, False), step(theirs, False))


def test_bf16_is_as_exact_as_pefts():
    ours = adapted(torch.bfloat16)
    theirs = copy.deepcopy(ours)
    exact = copy.deepcopy(ours).float()
    assert fuse_linears(ours) == 14
    found = step(ours, True)
    assert {gradient.dtype for gradient in found[1].values()} == {torch.float32}
    assert_step_as_exact_as_plain(found, step(theirs, True), step(exact, False))


def test_layers_with_more_than_plain_lora_keep_pefts_forward():
    assert fuse_linears(adapted(torch.float32, use_dora=True)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_same_in_backward(dtype):
    """Against peft's layers and autograd, which drop the same elements."""
    ours = adapted(dtype, lora_dropout=0.3)
    theirs = copy.deepcopy(ours)
    assert fuse_linears(ours) == 14
    same_dropout(theirs, dtype)
    assert fuse_linears(theirs) == 0  # another kind of dropout
    exact = copy.deepcopy(theirs).float()

    def results(seed=5):
        steps = []
        for model, half in ((ours, dtype == torch.bfloat16), (theirs, True), (exact, False)):
            torch.manual_seed(seed)
            steps.append(step(model, half))
            model.zero_grad()
        return steps

    def compare(found, plain, wanted):
        if dtype == torch.float32:
            assert_close(found, wanted)
        else:
            assert_step_as_exact_as_plain(found, plain, wanted)

    trained = results()
    compare(*trained)
    torch.manual_seed(6)
    assert step(ours, dtype == torch.bfloat16)[0] != trained[0][0]
    for model in (ours, theirs, exact):
        model.zero_grad()
        model.eval()
    compare(*results())
