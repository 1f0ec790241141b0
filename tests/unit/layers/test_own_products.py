"""Frozen weights of our own products: as exact as the plain ones, in a layer, a model and a head.

Where this CPU has no AMX, tile registers are emulated (kernels/gemm/tiles.h).
"""

import copy

import numpy as np
import pytest
import torch
import transformers
from support.model_fixtures import (
    SHAPE,
    assert_as_exact_as_plain,
    distance,
    lora_gradients,
    row_of,
)
from transformers import AutoModelForCausalLM

from intel_ft.artifacts.ir_weights import CompressedTensor, dequantize
from intel_ft.config import build
from intel_ft.decisions import Decision
from intel_ft.kernels.gemm.library import library, why_no_tiles, why_no_vnni
from intel_ft.layers import own_products, packed_attention
from intel_ft.layers.compressed import CompressedWeight
from intel_ft.layers.lora_linear import Dense, LoraLinear, LoraStep, TileStep
from intel_ft.layers.own_products import TileWeight, tile_base, tile_int8_base, vnni_base
from intel_ft.models import fast_path, frozen_base, gemm_choice, gemm_rate, loss
from intel_ft.models.adapter import add_lora
from intel_ft.models.compressed import use_compressed
from intel_ft.models.frozen_base import (
    FrozenLinear,
    convert_frozen_weights,
    frozen_dtype,
    frozen_linears,
    replace_linears,
)
from intel_ft.models.gemm_choice import GemmChoice, choose_gemms
from intel_ft.models.loss import HeadLoss, pack_head
from intel_ft.models.model_inputs import model_inputs


@pytest.fixture(autouse=True)
def compiled() -> None:
    why_no_tiles()  # asks Linux for the tiles, without which a product is killed
    if not hasattr(library().library, "tile_multiply"):
        pytest.skip(f"no products with AVX-512 here: {library().reason}")
    torch.manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


@pytest.mark.parametrize("tokens", [1, 77])
@pytest.mark.parametrize("with_bias", [False, True])
def test_bf16_products_are_the_plain_ones(tokens, with_bias) -> None:
    weight, bias = random(200, 96), random(200) if with_bias else None
    base, plain = tile_base(weight, bias), Dense(weight, bias)
    exact = Dense(weight.float(), None if bias is None else bias.float())
    x, grad = random(tokens, 96), random(tokens, 200)
    for residual in (None, random(200, tokens).T):
        wanted = exact.linear(x.float(), None if residual is None else residual.float())
        assert_as_exact_as_plain(base.linear(x, residual), plain.linear(x, residual), wanted)
    for added in (None, random(tokens, 96)):
        wanted = exact.input_gradient(grad.float(), None if added is None else added.float())
        found = base.input_gradient(grad, None if added is None else added.clone())
        assert_as_exact_as_plain(found, plain.input_gradient(grad, added), wanted)


@pytest.mark.parametrize("factory", [tile_int8_base, vnni_base])
@pytest.mark.parametrize("with_bias", [False, True])
def test_int8_products_are_near_the_plain_ones(factory, with_bias) -> None:
    if factory is vnni_base and why_no_vnni() is not None:
        pytest.skip(why_no_vnni())
    weight, bias = random(200, 96), random(200) if with_bias else None
    weight[3] *= 50  # one loud output channel and one loud token leave the others exact
    base, plain = factory(weight, bias), Dense(weight.float(), None)
    x, grad = random(60, 96), random(60, 200)
    x[5] *= 100
    x[6] = 0
    shift = torch.zeros(200) if bias is None else bias.float()
    found, wanted = base.linear(x, None), plain.linear(x.float(), None) + shift
    assert torch.equal(found[6], shift.bfloat16())
    for row in (0, 5):
        assert distance(found[row, 4:], wanted[row, 4:]) < 0.02
    added = random(60, 96)
    wanted = plain.input_gradient(grad.float(), added.float())
    assert distance(base.input_gradient(grad, added), wanted) < 0.05


def test_lora_is_added_in_the_same_sum() -> None:
    weight, a, b = random(70, 64), torch.randn(4, 64), torch.randn(70, 4)
    steps = [
        LoraLinear(base, a, b, 2.0).start_step()
        for base in (tile_base(weight, None), Dense(weight, None))
    ]
    exact = LoraLinear(Dense(weight.float(), None), a.bfloat16().float(), b, 2.0).start_step()
    x, grad = random(33, 64), random(33, 70)
    own, plain = (step.forward(x)[0] for step in steps)
    assert_as_exact_as_plain(own, plain, exact.forward(x.float())[0])
    own, plain = (step.input_gradient(grad, step.lora_a_out_gradient(grad)) for step in steps)
    wide = grad.float()
    assert_as_exact_as_plain(
        own, plain, exact.input_gradient(wide, exact.lora_a_out_gradient(wide))
    )
    found, other, wanted = (
        step.lora_gradients(
            g, step.lora_a_out_gradient(g), x.to(g.dtype), step.forward(x.to(g.dtype))[1]
        )
        for step, g in zip([*steps, exact], (grad, grad, wide), strict=True)
    )
    for own, plain, known in zip(found, other, wanted, strict=True):
        assert own.dtype == torch.float32
        assert_as_exact_as_plain(own, plain, known)


def test_lora_without_tokens_or_with_dropout_is_computed_on_tiles_too() -> None:
    a, b = torch.randn(4, 64), torch.randn(70, 4)
    linear = LoraLinear(tile_base(random(70, 64), None), a, b, 2.0, torch.nn.Dropout(0.5))
    assert type(linear.start_step()) is LoraStep  # dropout is for torch's own products
    linear.dropout.eval()
    step, empty = linear.start_step(), random(0, 64)
    assert type(step) is TileStep
    out, lora_a_out = step.forward(empty)
    assert out.shape == (0, 70)
    grad_x, (grad_a, grad_b) = step.backward(out, empty, lora_a_out)
    assert grad_x.shape == (0, 64)
    assert torch.equal(grad_a, torch.zeros(4, 64))
    assert torch.equal(grad_b, torch.zeros(70, 4))


@pytest.fixture
def model():
    llama = transformers.LlamaConfig(**SHAPE | {"num_hidden_layers": 1})
    base = AutoModelForCausalLM.from_config(llama, attn_implementation=packed_attention.NAME)
    return base.to(torch.bfloat16).requires_grad_(False)


def test_a_model_on_tiles_gives_the_gradients_of_a_plain_one(model, monkeypatch) -> None:
    monkeypatch.setattr(loss, "own_base", lambda dtype: (tile_base, "AMX"))
    other, exact = copy.deepcopy(model), copy.deepcopy(model).float()
    replace_linears(other, tile_base)
    [decision] = pack_head(other, 2**40)
    assert decision.value == "intel_ft (AMX)"
    assert frozen_dtype(other) == torch.bfloat16
    assert_as_exact_as_plain(lora_gradients(other), lora_gradients(model), lora_gradients(exact))


@pytest.mark.parametrize("factory", [tile_int8_base, vnni_base])
def test_an_int8_model_gives_gradients_within_a_bound_of_bf16s(model, factory) -> None:
    if factory is vnni_base and why_no_vnni() is not None:
        pytest.skip(why_no_vnni())
    other = copy.deepcopy(model)
    replace_linears(other, factory)
    assert frozen_dtype(other) == torch.int8
    assert distance(lora_gradients(other), lora_gradients(model)) < 0.1


@pytest.mark.parametrize("own", [True, False])
def test_an_int4_model_is_the_one_with_its_weights_in_bf16(model, monkeypatch, own) -> None:
    factory, name = (tile_base, "AMX") if own else (gemm_choice.prepacked_base, "oneDNN")
    choice = GemmChoice(factory, own, Decision("frozen GEMMs", name, "a test"))
    monkeypatch.setattr(frozen_base, "choose_gemms", lambda *_, **__: choice)
    codes, other = {}, copy.deepcopy(model)
    for _, _, linear in frozen_linears(model):
        rows, size = shape = tuple(linear.weight.shape)
        scales, zeros = np.full((rows, 1), 2**-6, np.float16), np.full((rows, 1), 8, np.uint8)
        packed = np.random.default_rng(0).integers(0, 256, rows * size // 2, dtype=np.uint8)
        key = next(name for name, module in model.named_modules() if module is linear)
        codes[key] = CompressedTensor(packed, scales, zeros, shape, 4, False, (0, 0, 0))
        weight = torch.from_numpy(dequantize(codes[key])).bfloat16()
        other.get_submodule(key).weight.data = weight
    use_compressed(model, codes)
    assert convert_frozen_weights(model, "int4") is choice
    kind = TileWeight if own else CompressedWeight
    assert {type(m.frozen_base) for m in model.modules() if isinstance(m, FrozenLinear)} == {kind}
    assert frozen_dtype(model) == torch.bfloat16
    if own:
        replace_linears(other, tile_base)
    assert lora_gradients(model).equal(lora_gradients(other))


def test_a_packed_head_gives_the_loss_and_gradient_of_a_plain_one() -> None:
    hidden, weight, targets = random(40, 64), random(100, 64), torch.randint(100, (40,))
    targets[::5] = -100
    results = []
    for packed in (tile_base(weight, None), None):
        leaf = hidden.clone().requires_grad_()
        total = HeadLoss.apply(leaf, weight, targets, None, None, packed).sum()
        total.backward()
        results.append((total.detach(), leaf.grad))
    (loss_sum_, grad), (wanted, known) = results
    torch.testing.assert_close(loss_sum_, wanted, rtol=1e-3, atol=0)
    assert distance(grad, known) < 1e-2


def test_a_head_is_packed_where_there_is_room(model, monkeypatch) -> None:
    monkeypatch.setattr(loss, "own_base", lambda dtype: None)
    assert pack_head(model, 2**40) == []
    monkeypatch.setattr(loss, "own_base", lambda dtype: (tile_base, "AMX"))
    [decision] = pack_head(model, 1000)
    assert decision.value == "oneDNN" and "half of the free memory" in decision.reason
    assert not hasattr(model, "packed_head")


@pytest.mark.parametrize(
    ("own", "dropout", "padded"), [(True, 0.0, 96), (False, 0.0, 128), (True, 0.1, 128)]
)
def test_rows_are_padded_to_panels_where_all_gemms_are_on_tiles(
    model, monkeypatch, own, dropout, padded
) -> None:
    chosen = GemmChoice(tile_base, own, Decision("frozen GEMMs", "ours", "a test"))
    monkeypatch.setattr("intel_ft.models.model_inputs.row_multiple", lambda device: 128)
    monkeypatch.setattr(fast_path, "own_base", lambda dtype: (tile_base, "AMX"))
    monkeypatch.setattr(fast_path, "convert_frozen_weights", lambda *_: chosen)
    sections = {
        "model": {"name_or_path": "-"},
        "data": {"train": "-"},
        "output": {"directory": "-"},
    }
    config = build({**sections, "method": {"r": 4, "dropout": dropout}}, "test")
    adapted = add_lora(model, config.method, "base", None)
    fast_path.apply_fast_path(adapted, config, 0)
    inputs = model_inputs(row_of(40, 30), adapted, packed=True)
    assert inputs.model_kwargs["input_ids"].shape == (1, padded)
    assert len(inputs.predict) == len(inputs.targets) == (64 if padded == 96 else 128)


# -- the choice ------------------------------------------------------------------------------------

SHAPES = {(64, 32): 3, (32, 64): 1}


@pytest.mark.parametrize(("ours", "chosen"), [(1.0, True), (2.1, True), (2.3, False)])
@pytest.mark.parametrize("int8", [False, True])
def test_the_faster_products_are_chosen(monkeypatch, ours, chosen, int8) -> None:
    """oneDNN takes 2 s; ours are taken up to a tenth more."""
    for name in ("own_base", "own_int8_base"):
        monkeypatch.setattr(gemm_choice, name, lambda dtype: (tile_base, "AMX"))
    measured = []

    def measure(gemm, dtype, kinds, seconds):
        measured.append((gemm.columns, gemm.inner, gemm.count))
        return gemm_rate.GemmTiming(gemm, {k: ours if "own" in k else 2.0 for k in kinds})

    monkeypatch.setattr(gemm_choice.gemm_rate, "measure", measure)
    choice = choose_gemms(SHAPES, torch.bfloat16, int8=int8)
    assert measured == [(64, 32, 3), (32, 64, 1)]
    assert choice.own == chosen
    assert (choice.factory is tile_base) == chosen
    assert choice.decision.value == ("intel_ft (AMX)" if chosen else "oneDNN")
    assert "GFLOP/s on this model's shapes" in choice.decision.reason


def test_without_our_products_the_reason_is_told(monkeypatch) -> None:
    monkeypatch.setattr(
        own_products, "why_no_tiles", lambda: "ONEDNN_MAX_CPU_ISA=AVX2 disables AMX"
    )
    monkeypatch.setattr(own_products, "why_no_vnni", lambda: "c++ failed: error")
    choice = choose_gemms(SHAPES, torch.bfloat16, int8=False)
    wanted = "frozen GEMMs = oneDNN (ONEDNN_MAX_CPU_ISA=AVX2 disables AMX)"
    assert not choice.own and str(choice.decision) == wanted
    choice = choose_gemms(SHAPES, torch.bfloat16, int8=True)
    assert choice.decision.reason == "ONEDNN_MAX_CPU_ISA=AVX2 disables AMX, c++ failed: error"
