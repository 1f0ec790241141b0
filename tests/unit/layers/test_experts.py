"""Experts with LoRA: the fused forward and backward against Transformers and peft."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from support.families import architectures
from support.model_fixtures import assert_as_exact_as_plain
from transformers import AutoConfig, AutoModelForCausalLM

from intel_ft.batching.row import build_row
from intel_ft.config_method import MethodConfig
from intel_ft.kernels import ops
from intel_ft.layers import packed_attention
from intel_ft.layers.experts import (
    ExpertLinear,
    Experts,
    ExpertsFunction,
    Order,
    SwiGLU,
    padded_rows,
)
from intel_ft.layers.fused_experts import _trial, expert_modules, fuse_experts
from intel_ft.layers.grouped_experts import GroupedExperts, can_compute
from intel_ft.layers.lora_linear import Dense
from intel_ft.models.adapter import add_lora, fuse, lora_config, save_adapter
from intel_ft.models.adapter_effect import without_effect
from intel_ft.models.frozen_base import convert_frozen_weights
from intel_ft.models.loss import loss_sum
from intel_ft.models.saved_adapter import apply_adapter
from intel_ft.templates.examples import Examples

FAMILIES = (
    "Qwen 3 MoE",
    "Mixtral",
    "gpt-oss",
    "DeepSeek V3",
    "GLM 4 MoE",
    "Granite 3 MoE",
    "OLMoE",
)
METHOD = MethodConfig(r=2, alpha=4)
LENGTHS = (9, 14, 5)


def base(name: str, attention: str = "eager", dtype: torch.dtype = torch.float32):
    model_type, values = architectures.FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **values | {"initializer_range": 0.1})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith(("bias", "sinks")):
                weight.normal_(std=0.1)
    return model.requires_grad_(False).train()


def with_values(model):
    """Give every LoRA weight a value, so that A and B both have gradients."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def ours(name: str, *, packed: bool, dtype: torch.dtype = torch.float32):
    attention = packed_attention.NAME if packed else "eager"
    model = with_values(add_lora(base(name, attention, dtype), METHOD, "base", None))
    decision = fuse_experts(model)
    assert decision is not None and decision.value == "sorted", decision
    fuse(model)
    return model


def examples() -> Examples:
    tokens = np.random.default_rng(0).integers(3, 4000, sum(LENGTHS)).astype(np.int32)
    offsets = np.array([0, *np.cumsum(LENGTHS)])
    supervised = np.arange(len(tokens)) % 3 > 0
    supervised[offsets[:-1]] = False  # nothing predicts an example's first token
    return Examples(tokens, supervised, offsets)


def plain_loss(model) -> torch.Tensor:
    """Transformers' and peft's own forward, one example after another."""
    total = torch.zeros(())
    for index in range(len(LENGTHS)):
        tokens, supervised = examples()[index]
        ids = torch.from_numpy(tokens).long()
        labels = torch.where(torch.from_numpy(supervised), ids, -100)
        logits = model(input_ids=ids[None], use_cache=False).logits
        total = total + F.cross_entropy(logits[0, :-1], labels[1:], reduction="sum")
    return total


def gradients(model) -> dict[str, torch.Tensor]:
    return {n: w.grad for n, w in model.named_parameters() if w.requires_grad}


@pytest.fixture(scope="module")
def reference():
    """The loss and gradients of each family by Transformers and peft alone, once."""
    found = {}

    def of(name: str):
        if name not in found:
            plain = base(name)
            model = with_values(get_peft_model(plain, lora_config(plain, METHOD)))
            loss = plain_loss(model)
            loss.backward()
            found[name] = loss.item(), gradients(model)
        return found[name]

    return of


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_equal_transformers_and_peft(name, packed, reference) -> None:
    expected, grads = reference(name)
    model = ours(name, packed=packed)
    rows = [np.arange(len(LENGTHS))] if packed else [np.array([i]) for i in range(len(LENGTHS))]
    losses = [loss_sum(model, build_row(examples(), row), packed=packed) for row in rows]
    sum(losses).backward()
    assert float(sum(losses)) == pytest.approx(expected, rel=1e-5)
    found = gradients(model)
    assert found.keys() == grads.keys()
    experts = [key for key in found if ".experts" in key or "_linear.lora_" in key]
    assert experts
    for key, gradient in found.items():
        assert (gradient - grads[key]).norm() <= 1e-5 * grads[key].norm(), key


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_loads_the_adapter_and_its_merge_agrees(name, tmp_path) -> None:
    model = ours(name, packed=False).eval()
    ids = torch.from_numpy(examples()[1][0]).long()[None]
    expected = model(input_ids=ids).logits
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(base(name).eval(), str(tmp_path))
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
    again = apply_adapter(base(name).eval(), tmp_path)
    torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_no_tensor_has_a_row_for_each_token_and_expert() -> None:
    index = torch.tensor([[3, 1], [1, 0], [3, 2], [1, 3]])
    order = Order.of(index, 5, int)
    assert order.bounds == [0, 1, 4, 5, 8, 8]
    assert order.tokens.tolist() == [1, 0, 1, 3, 2, 0, 2, 3]
    rows = torch.arange(8.0)[:, None]
    assert order.sum_per_token(rows).flatten().tolist() == [5 + 1, 2 + 0, 6 + 4, 3 + 7]
    assert order.sum_per_token(rows, torch.tensor([[1.0, 2.0]] * 4))[0].item() == 5 + 2 * 1


def test_padded_rows_have_few_sizes_and_read_no_token() -> None:
    sizes = {padded_rows(count) for count in range(1, 1025)}
    assert sizes == {32, 64, 96, 128, 192, 256, 384, 512, 768, 1024}
    assert all(count <= padded_rows(count) <= 1.5 * count for count in range(64, 1025))
    assert padded_rows(0) == 0
    order = Order.of(torch.tensor([[3, 1], [1, 0], [3, 2], [1, 3]]), 5, padded_rows)
    assert order.bounds == [0, 32, 64, 96, 128, 128]
    assert order.places.tolist() == [[96, 32], [33, 0], [97, 64], [34, 98]]
    used = order.places.flatten()
    assert order.tokens[used].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    padding = torch.ones(128, dtype=torch.bool)
    padding[used] = False
    assert (order.tokens[padding] == 4).all() and (order.pairs[padding] == 8).all()


@pytest.mark.parametrize("layout", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["Qwen 3 MoE", "gpt-oss", "Granite 3 MoE"])
def test_converted_experts_are_near_the_loaded_ones(name, layout) -> None:
    if layout == "nf4":
        pytest.importorskip("bitsandbytes")
    row = build_row(examples(), np.arange(len(LENGTHS)))
    plain = ours(name, packed=True, dtype=torch.bfloat16)
    expected = loss_sum(plain, row, packed=True)
    expected.backward()
    model = with_values(
        add_lora(base(name, packed_attention.NAME, torch.bfloat16), METHOD, "base", None)
    )
    convert_frozen_weights(model, layout)
    storages = {
        weight.untyped_storage().nbytes()
        for weight in model.parameters()
        if weight.dim() == 3 and not weight.requires_grad
    }
    assert storages == {2}  # one element, however many the shape says
    assert fuse_experts(model).value == "sorted"
    fuse(model)
    found = loss_sum(model, row, packed=True)
    found.backward()
    assert float(found) == pytest.approx(float(expected), rel=0.05)
    for key, gradient in gradients(plain).items():
        if ".experts" in key:
            assert torch.cosine_similarity(
                gradient.flatten(), gradients(model)[key].flatten(), dim=0
            ) > (0.9 if layout == "int8" else 0.5)


def _layer(dtype: torch.dtype, transposed: bool) -> Experts:
    """Experts of fixed values, of 5, rank 6, with biases."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.2).bfloat16().float()

    def linear(inputs: int, outputs: int) -> ExpertLinear:
        weight = random(5, inputs, outputs).to(dtype)
        weight = weight.mT if transposed else weight.mT.contiguous()
        bases = [Dense(matrix, None) for matrix in weight.unbind()]
        a, b = random(5 * 6, inputs), random(outputs, 6 * 5)
        bias = random(5, outputs).to(dtype)
        return ExpertLinear(
            bases, weight, bias, a.requires_grad_(True), b.requires_grad_(True), scale=0.5
        )

    return Experts(linear(64, 96), linear(48, 64), SwiGLU())


def _step(function, experts: Experts, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(40, 64, generator=generator).to(dtype).requires_grad_(True)
    index = torch.rand(40, 5, generator=generator)[:, :4].argsort(dim=1)[:, :2]  # never expert 4
    weights = torch.rand(40, 2, generator=generator).requires_grad_(True)
    out = function.apply(x, index, weights, experts, *experts.trained)
    grad = torch.randn(40, 64, generator=generator).to(dtype)
    return [out, *torch.autograd.grad(out, [x, weights, *experts.trained], grad)]


@pytest.mark.skipif(
    not ops.compiled(torch.zeros(1, dtype=torch.bfloat16)), reason="no compiled kernels here"
)
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_experts_are_as_exact_as_one_expert_after_another(transposed) -> None:
    exact = _step(ExpertsFunction, _layer(torch.float32, transposed), torch.float32)
    experts = _layer(torch.bfloat16, transposed)
    assert can_compute(experts)
    plain = _step(ExpertsFunction, experts, torch.bfloat16)
    found = _step(GroupedExperts, experts, torch.bfloat16)
    for one, other, right in zip(found, plain, exact, strict=True):
        assert one.dtype == other.dtype and one.shape == right.shape
        assert_as_exact_as_plain(one, other, right, factor=1.5)
    assert not can_compute(_layer(torch.float32, transposed))


def test_a_disabled_adapter_leaves_the_base() -> None:
    model = ours("Qwen 3 MoE", packed=False).eval()
    ids = torch.from_numpy(examples()[1][0]).long()[None]
    with model.disable_adapter():
        found = model(input_ids=ids).logits
    torch.testing.assert_close(found, base("Qwen 3 MoE").eval()(input_ids=ids).logits)


def test_modules_without_effect_are_named() -> None:
    model = add_lora(base("Qwen 3 MoE"), METHOD, "base", None)
    lines = without_effect(model)
    assert "mlp.experts.gate_up_proj (2 of 2 modules)" in lines
    assert "self_attn.q_proj (2 of 2 modules)" in lines
    with_values(model)
    assert without_effect(model) == []
    for name, weight in model.named_parameters():
        if "layers.1.mlp.experts.lora_B" in name:  # down_proj's, [out, rank * experts]
            weight.data.view(len(weight), -1, 4)[:, :, 2] = 0
    assert without_effect(model) == ["mlp.experts.down_proj (1 of 8 experts)"]


MIXTURES = (
    *FAMILIES,
    *("Qwen 2 MoE", "Qwen 3 Next", "DeepSeek V2", "Phi 3.5 MoE", "LFM 2 MoE", "Jamba"),
    *("Nemotron H", "Granite 4, hybrid"),
)


@pytest.mark.parametrize("name", MIXTURES)
def test_each_layers_trial_agrees_in_bf16(name) -> None:
    """The numbers of a trial are near those of the model's own code, far below what is refused."""
    model_type, values = architectures.FAMILIES[name]
    config = AutoConfig.for_model(model_type, **values)
    for initializer_range in (0.02, 0.2):
        config.initializer_range = initializer_range
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        parts = list(expert_modules(model.requires_grad_(False)))
        assert parts
        for part in parts:
            own, fused = _trial(part)
            for one, other in zip(own, fused, strict=True):
                assert (one - other).float().norm() < 0.02 * one.float().norm()
