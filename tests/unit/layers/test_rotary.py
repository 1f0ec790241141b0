"""Rotary positions in models whose layers are not fused: values and gradients of their own code."""

import copy

import pytest
import torch
import transformers
from support.model_fixtures import SHAPE

from intel_ft.kernels import ops
from intel_ft.layers.rotary import fuse_rotary

needs_kernels = pytest.mark.skipif(
    not ops.compiled(torch.zeros(1, dtype=torch.bfloat16)), reason="no compiled kernels here"
)
MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}


def model(config: transformers.PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return base.requires_grad_(False)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 2])
def test_output_and_gradient_stay_and_other_models_keep_their_own(rows) -> None:
    plain = model(transformers.Qwen3MoeConfig(**SHAPE | MOE))
    fused = copy.deepcopy(plain)
    attention = fused.model.layers[0].self_attn
    own = vars(type(attention))["forward"]
    assert fuse_rotary(fused) == len(fused.model.layers)
    assert fuse_rotary(fused) == 0 and vars(type(attention))["forward"] is own
    x = torch.randn(rows, 9, fused.config.hidden_size).bfloat16()
    positions = fused.model.rotary_emb(x, torch.arange(3, 12)[None].expand(rows, -1))
    results = []
    for base in (plain.float(), fused):
        part, dtype = base.model.layers[0].self_attn, next(base.parameters()).dtype
        leaf = x.to(dtype).requires_grad_()
        out = part(leaf, [side.to(dtype) for side in positions], None)[0]
        results.append([out, *torch.autograd.grad(out, leaf, torch.ones_like(out))])
    for right, found in zip(*results, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - right).norm() <= 0.01 * right.norm()


@needs_kernels
def test_the_kernel_rotates_and_its_gradient_is_exact() -> None:
    x, grad = torch.randn(2, 5, 3, 8).bfloat16()
    cos, sin = torch.randn(2, 5, 8).bfloat16()
    leaf = x.double().requires_grad_()
    first, second = leaf.chunk(2, -1)
    right = leaf * cos[:, None].double() + torch.cat((-second, first), -1) * sin[:, None].double()
    torch.testing.assert_close(ops.rotate(x, cos, sin), right.bfloat16())
    (right,) = torch.autograd.grad(right, leaf, grad.double())
    torch.testing.assert_close(ops.rotate(grad, cos, sin, backward=True), right.bfloat16())


@needs_kernels
def test_other_functions_stay() -> None:
    base = model(transformers.GptOssConfig(**SHAPE | {"head_dim": 16, "num_local_experts": 4}))
    assert fuse_rotary(base) == 0
