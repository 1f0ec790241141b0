"""Fused norms of models whose layers are not fused: the values and gradients of their own code."""

import pytest
import torch
import transformers
from support.model_fixtures import SHAPE

from intel_ft.kernels import ops
from intel_ft.layers.norms import fuse_norms

needs_kernels = pytest.mark.skipif(
    not ops.compiled(torch.zeros(1, dtype=torch.bfloat16)), reason="no compiled kernels here"
)
MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}


def model(dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(**SHAPE | MOE)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)


@needs_kernels
def test_norms_are_as_exact_as_the_models_own_forward_and_backward() -> None:
    base = model()
    layer = base.model.layers[0]
    norms = {"hidden": layer.input_layernorm, "heads": layer.self_attn.q_norm}
    for norm in norms.values():
        norm.weight.data.uniform_(0.5, 2.0)
    inputs = {name: 3 * torch.randn(2, 5, 3, len(norm.weight)) for name, norm in norms.items()}

    def results(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
        x = inputs[name].bfloat16().to(dtype).requires_grad_(True)
        out = norms[name].to(dtype)(x)
        grad = torch.linspace(-1, 1, x.numel()).view(x.shape).bfloat16().to(dtype)
        return [out.detach(), torch.autograd.grad(out, x, grad)[0]]

    exact = {name: results(name, torch.float32) for name in norms}
    base.bfloat16()
    layers = base.config.num_hidden_layers
    assert fuse_norms(base) == 4 * layers + 1
    for name in norms:
        for found, right in zip(results(name, torch.bfloat16), exact[name], strict=True):
            assert found.dtype == torch.bfloat16
            assert (found.float() - right).norm() <= 2**-8 * right.norm()


@needs_kernels
def test_norms_that_are_trained_or_differ_or_are_in_float32_stay() -> None:
    base = model()
    base.model.norm.weight.requires_grad_(True)
    other = base.model.layers[0].input_layernorm
    other.__class__ = type("GemmaRMSNorm", (type(other),), {"forward": lambda self, x: x + 1})
    assert fuse_norms(base) == 4 * base.config.num_hidden_layers - 1
    x = torch.ones(1, 2, len(other.weight), dtype=torch.bfloat16)
    assert torch.equal(other(x), x + 1)
    assert fuse_norms(model(torch.float32)) == 0
