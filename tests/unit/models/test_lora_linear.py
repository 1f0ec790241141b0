"""The fused LoRA layer against peft's own, and which layers are fused."""

import copy

import peft
import pytest
import torch
from support.model_fixtures import same_dropout
from transformers import LlamaConfig, LlamaForCausalLM

from intel_ft.backends.cpu import fastest_dtype
from intel_ft.models.lora_linear import fuse_linears

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


# A CPU that cannot multiply in bf16 rounds more often on torch's way round it.
IN_BF16 = 2e-2 if fastest_dtype()[0] == torch.bfloat16 else 3e-2


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, IN_BF16)])
def test_loss_and_every_gradient_equal_pefts(dtype, bound):
    ours = adapted(dtype)
    theirs = copy.deepcopy(ours)
    assert fuse_linears(ours) == 14
    half = dtype == torch.bfloat16
    (loss, gradients), (wanted, reference) = step(ours, half), step(theirs, half)
    assert loss == pytest.approx(wanted, rel=bound)
    whole = torch.cat([g.flatten() for g in reference.values()]).norm()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        error = (gradient - reference[name]).norm()
        assert error <= bound * (reference[name].norm() + 0.1 * whole), name


def test_layers_with_more_than_plain_lora_keep_pefts_forward():
    assert fuse_linears(adapted(torch.float32, use_dora=True)) == 0


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_dropout_drops_the_same_in_backward(dtype, bound):
    """Against peft's layers and autograd, given the elements that ours drop."""
    ours = adapted(dtype, lora_dropout=0.3)
    theirs = copy.deepcopy(ours)
    assert fuse_linears(ours) == 14
    same_dropout(theirs, dtype)
    assert fuse_linears(theirs) == 0  # another kind of dropout
    half = dtype == torch.bfloat16
    torch.manual_seed(5)
    loss, gradients = step(ours, half)
    torch.manual_seed(5)
    wanted, reference = step(theirs, half)
    assert loss == pytest.approx(wanted, rel=bound)
    whole = torch.cat([g.flatten() for g in reference.values()]).norm()
    for name, gradient in gradients.items():
        error = (gradient - reference[name]).norm()
        assert error <= bound * (reference[name].norm() + 0.1 * whole), name
    torch.manual_seed(6)
    assert step(ours, half)[0] != loss
    ours.eval()
    theirs.eval()
    assert step(ours, half)[0] == pytest.approx(step(theirs, half)[0], rel=bound)
