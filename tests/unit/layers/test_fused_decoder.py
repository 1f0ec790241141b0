"""Decoder layers as one function against the models' own: results, gradients, and refusals."""

import copy
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import transformers
from support.model_fixtures import SHAPE, row_of, same_dropout
from transformers import AutoModelForCausalLM

from intel_ft.batching.row import Row, build_row
from intel_ft.layers import fused_decoder, packed_attention
from intel_ft.layers.fused_decoder import fuse_layers, is_fused
from intel_ft.layers.lora_linear import fuse_linears
from intel_ft.models.loss import loss_sum
from intel_ft.templates.examples import Examples

FUSED = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "llama-bias": transformers.LlamaConfig(
        **SHAPE, attention_bias=True, mlp_bias=True, head_dim=12
    ),
    "mistral": transformers.MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**SHAPE),
    "qwen3": transformers.Qwen3Config(**SHAPE, head_dim=16),
}
WINDOW = {"use_sliding_window": True, "sliding_window": 4}
REFUSED = {
    "mistral-window": (
        transformers.MistralConfig(**SHAPE, sliding_window=4),
        "its attention has a sliding window",
    ),
    "qwen2-window": (  # in the second layer only
        transformers.Qwen2Config(**SHAPE, **WINDOW, max_window_layers=1),
        "its attention has a sliding window",
    ),
    "gemma2": (
        transformers.Gemma2Config(**SHAPE, head_dim=8),
        "its layers are not built like Llama's",
    ),
    "gpt2": (
        transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4),
        "its decoder has no list of layers",
    ),
    "phi": (transformers.PhiConfig(**SHAPE), "its layers are not built like Llama's"),
    "phi3": (transformers.Phi3Config(**SHAPE), "its layers are not built like Llama's"),
    "gelu": (transformers.LlamaConfig(**SHAPE, hidden_act="gelu"), "its MLP is not SwiGLU"),
    "granite": (  # all names are Llama's: what the trial is for
        transformers.GraniteConfig(**SHAPE, residual_multiplier=0.3),
        "a trial of one layer gave a different result",
    ),
    "smollm3": (  # Llama's in the first three layers, without rotary positions in the fourth
        transformers.SmolLM3Config(**SHAPE | {"num_hidden_layers": 4}),
        "a trial of one layer gave a different result",
    ),
    "llama-dropout": (
        transformers.LlamaConfig(**SHAPE, attention_dropout=0.1),
        "its layers have their own dropout",
    ),
    "seed-oss": (  # dropout by default, in attention and behind it
        transformers.SeedOssConfig(**SHAPE, head_dim=8),
        "its layers have their own dropout",
    ),
    "seed-oss-residual": (
        transformers.SeedOssConfig(**SHAPE, head_dim=8, attention_dropout=0.0),
        "its layers have their own dropout",
    ),
}
LENGTHS = (5, 33, 1, 20)


@pytest.fixture(autouse=True)
def one_thread():
    """So small models are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def adapted(config, dtype=torch.float32, attention=packed_attention.NAME, **options):
    """A random model with random LoRA, its norms and biases neither one nor zero."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"} | options
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    base = base.to(dtype).requires_grad_(False)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def twice(config, **options):
    """The same model fused and as peft made it."""
    plain = adapted(config, **options)
    ours = copy.deepcopy(plain)
    assert fuse_layers(ours) is None
    assert is_fused(ours)
    assert not is_fused(plain)
    return ours, plain


ROW = row_of(*LENGTHS)


def all_supervised(row: Row) -> Row:
    """A token's own successor to predict, whichever example that is of."""
    every = np.arange(len(row.tokens))
    return replace(row, predict=every, targets=np.roll(row.tokens, -1))


def inputs(row=ROW):
    arrays = (torch.from_numpy(a) for a in (row.tokens, row.positions, row.bounds))
    return packed_attention.row_inputs(*arrays)


def step(model, row=ROW):
    model.zero_grad()
    loss = loss_sum(model, row, packed=True)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return loss.item(), gradients


def assert_same_step(one, other, bound=1e-5) -> None:
    assert one[0] == pytest.approx(other[0], rel=bound)
    assert set(one[1]) == set(other[1])
    whole = torch.cat([g.flatten() for g in other[1].values()]).norm()
    for name, gradient in one[1].items():
        wanted = other[1][name]
        assert gradient.dtype == torch.float32
        assert wanted.norm() > 0
        assert (gradient - wanted).norm() <= bound * (wanted.norm() + 0.1 * whole), name


@pytest.fixture
def calls(monkeypatch) -> list:
    """One entry for each layer that runs fused."""
    seen = []
    apply = fused_decoder.DecoderLayer.apply
    monkeypatch.setattr(
        fused_decoder.DecoderLayer, "apply", lambda *a: seen.append(a[5] is not None) or apply(*a)
    )
    return seen


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["gate_proj", "o_proj"]])
@pytest.mark.parametrize("name", FUSED)
def test_loss_and_every_gradient_are_those_of_the_models_own_layers(name, targets, calls) -> None:
    ours, plain = twice(FUSED[name], target_modules=targets)
    calls.clear()
    found = step(ours)
    assert calls == [False, False, True]  # all layers, the last for supervised tokens only
    assert_same_step(found, step(plain))
    assert calls == [False, False, True]


def test_a_common_beginning_is_computed_once(calls) -> None:
    """Its last token predicts the first one of two answers; it counts for both where supervised."""
    random = np.random.default_rng(0)
    begin, *ends = (random.integers(0, 61, n).astype(np.int32) for n in (40, 9, 33, 12))
    parts = [np.concatenate((begin, ends[0])), np.concatenate((begin, ends[1])), ends[2]]
    supervised = np.concatenate([np.arange(len(part)) % 29 > 3 for part in parts])
    bounds = np.cumsum([0, *map(len, parts)])
    examples = Examples(np.concatenate(parts), supervised, bounds)
    row = build_row(examples, np.arange(3), share=True)
    assert len(row.tokens) == 40 + 9 + 33 + 12
    assert row.weights is not None
    assert set(row.weights) == {1, 2}
    assert len(set(row.predict)) < len(row.predict)
    ours, plain = twice(FUSED["qwen3"])
    calls.clear()
    found = step(ours, row)
    assert calls == [False, False, True]
    assert_same_step(found, step(plain, build_row(examples, np.arange(3))))


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_packed_logits_are_those_of_the_models_own_layers(name) -> None:
    ours, plain = twice(FUSED[name])
    found, wanted = ours(**inputs()).logits, plain(**inputs()).logits
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_bf16_is_as_near_to_float32_as_pefts_own(name) -> None:
    ours, plain = twice(FUSED[name], dtype=torch.bfloat16)
    exact = copy.deepcopy(plain).float()
    results = [step(model) for model in (ours, plain, exact)]
    flat = [torch.cat([g.flatten() for g in gradients.values()]) for _, gradients in results]
    errors = [((x - flat[2]).norm() / flat[2].norm()).item() for x in flat[:2]]
    assert results[0][0] == pytest.approx(results[2][0], rel=5e-3)
    assert errors[0] <= 1.3 * errors[1], errors


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_with_a_reason_and_left_alone(name) -> None:
    config, reason = REFUSED[name]
    model = adapted(config)
    assert fuse_layers(model) == reason
    assert not is_fused(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_layer_that_adds_little_is_not_refused_for_its_rounding() -> None:
    model = adapted(FUSED["llama"], dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        if "layernorm" in name:
            weight.mul_(3e-4)
    assert fuse_layers(model) is None


def test_a_trial_that_is_not_a_number_is_refused(monkeypatch) -> None:
    model = adapted(FUSED["llama"])
    monkeypatch.setattr(fused_decoder.ops, "swiglu", lambda gate, up: gate * torch.nan)
    assert fuse_layers(model) == "a trial of one layer gave a different result"


@pytest.mark.parametrize("alike", [True, False])
def test_only_the_first_of_layers_that_are_alike_is_tried(monkeypatch, alike) -> None:
    model, tried = adapted(FUSED["llama"]), []
    layers = model.get_base_model().get_decoder().layers
    if not alike:
        layers[-1].input_layernorm.variance_epsilon *= 2
    monkeypatch.setattr(fused_decoder, "_why_not_equal", lambda _, block, __: tried.append(block))
    assert fuse_layers(model) is None
    assert tried == list(layers[:1] if alike else layers)


def test_more_than_plain_lora_is_refused() -> None:
    model = adapted(FUSED["llama"], use_dora=True)
    assert fuse_layers(model) == "it has DoRA or special linear layers, which peft computes"
    assert not is_fused(model)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("again", [False, True])
def test_dropout_drops_the_same_in_backward(name, again) -> None:
    """Also where activation checkpointing runs a layer again.

    Every token is supervised: otherwise the last layer would compute some tokens only, and drop
    other elements.
    """
    row = all_supervised(row_of(*LENGTHS))
    ours, plain = twice(FUSED[name], lora_dropout=0.3)
    same_dropout(plain, torch.float32)
    assert not ours.training
    for model in (ours, plain):
        model.train()
    if again:
        ours.gradient_checkpointing_enable({"use_reentrant": False})
    found = []
    for seed, model in ((5, ours), (5, plain), (6, ours)):
        torch.manual_seed(seed)
        found.append(step(model, row))
    assert_same_step(found[0], found[1])
    assert found[2][0] != found[0][0]


def test_a_model_whose_attention_ignores_the_bounds_is_refused() -> None:
    model = adapted(FUSED["llama"], attention="sdpa")
    assert fuse_layers(model) == "a trial of one layer gave a different result"


@pytest.mark.parametrize("name", FUSED)
def test_generation_is_the_models_own(name, calls) -> None:
    ours, plain = twice(FUSED[name])
    calls.clear()
    prompt = {"input_ids": torch.from_numpy(ROW.tokens[None, :7])}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    results = []
    for model in (ours, plain):
        model.get_base_model().set_attn_implementation("sdpa")
        results.append(model.generate(**prompt, max_new_tokens=12, do_sample=False))
    assert torch.equal(*results)
    assert results[0].shape[1] > 8
    assert not calls


@pytest.mark.parametrize("fuse", [fuse_layers, fuse_linears])
@torch.no_grad()
def test_a_disabled_adapter_leaves_the_bases_own_result(fuse) -> None:
    plain = adapted(FUSED["llama"])
    ours = copy.deepcopy(plain)
    fuse(ours)
    with_adapter = ours(**inputs()).logits
    loss = loss_sum(ours, ROW, packed=True)
    with ours.disable_adapter(), plain.disable_adapter():
        assert torch.equal(ours(**inputs()).logits, plain(**inputs()).logits)
        base_loss = loss_sum(plain, ROW, packed=True)
        torch.testing.assert_close(loss_sum(ours, ROW, packed=True), base_loss)
        assert (loss - base_loss).abs() > 1e-3 * loss
    assert torch.equal(ours(**inputs()).logits, with_adapter)


@pytest.mark.parametrize("fuse", [fuse_layers, fuse_linears])
@torch.no_grad()
def test_a_merged_adapter_is_not_added_twice(fuse) -> None:
    ours = adapted(FUSED["llama"])
    fuse(ours)
    before = ours(**inputs()).logits
    ours.merge_adapter()
    torch.testing.assert_close(ours(**inputs()).logits, before, rtol=1e-4, atol=1e-4)
    ours.unmerge_adapter()
    torch.testing.assert_close(ours(**inputs()).logits, before, rtol=1e-4, atol=1e-4)


def test_activation_checkpointing_changes_no_gradient(calls) -> None:
    ours, plain = twice(FUSED["qwen3"])
    calls.clear()
    known = step(ours)
    layers = len(calls)
    for model in (ours, plain):
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    calls.clear()
    found = step(ours)
    assert len(calls) == 2 * layers  # run again in the backward pass
    assert_same_step(found, known, 1e-6)
    assert_same_step(found, step(plain))


def test_two_steps_accumulate_and_follow_the_weights() -> None:
    ours, plain = twice(FUSED["llama"])
    for model in (ours, plain):
        for row in (ROW, row_of(3, 9)):
            loss_sum(model, row, packed=True).backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3).step()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)
    assert_same_step(step(ours), step(plain), 1e-4)


@pytest.mark.parametrize("fuse", [fuse_layers, fuse_linears])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_without_supervised_tokens_gives_zeros(fuse, dtype) -> None:
    model = adapted(FUSED["llama"], dtype=dtype)
    fuse(model)
    nothing = ROW.predict[:0]
    row = Row(ROW.tokens, ROW.positions, ROW.bounds, nothing, nothing)
    loss, gradients = step(model, row)
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients.values())
