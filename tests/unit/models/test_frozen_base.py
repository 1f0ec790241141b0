"""The forms that frozen weights are kept in, against the plain product; and which one is chosen."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from support.model_fixtures import SHAPE, assert_as_exact_as_plain, distance, lora_gradients
from transformers import AutoModelForCausalLM

from intel_ft.config import build
from intel_ft.errors import EnvironmentProblem
from intel_ft.host import cpu
from intel_ft.layers import int8, lora_linear, packed_attention, prepacked
from intel_ft.layers.int8 import int8_base
from intel_ft.layers.lora_linear import Dense, LoraFunction, LoraLinear
from intel_ft.layers.prepacked import can_prepack, prepacked_base
from intel_ft.models.adapter import add_lora
from intel_ft.models.fast_path import apply_fast_path, choose_layout
from intel_ft.models.frozen_base import FrozenLinear, replace_linears

VNNI = bool({"avx512_vnni", "avx_vnni", "amx_int8"} & cpu.cpu_flags())
needs_vnni = pytest.mark.skipif(not VNNI, reason="this CPU has no int8 dot products")
needs_bf16 = pytest.mark.skipif(not can_prepack(torch.bfloat16), reason="no bf16 in oneDNN here")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


def config(**backend):
    model = {"name_or_path": "x"}
    if "base_dtype" in backend:
        model["base_dtype"] = backend.pop("base_dtype")
    return build(
        {
            "model": model,
            "data": {"train": "x"},
            "backend": backend,
            "output": {"directory": "x"},
        },
        "test",
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model():
    llama = transformers.LlamaConfig(**SHAPE)
    base = AutoModelForCausalLM.from_config(llama, attn_implementation=packed_attention.NAME)
    return base.to(torch.bfloat16).requires_grad_(False)


@needs_bf16
@pytest.mark.parametrize("widest", [6144, 128, 64])
@pytest.mark.parametrize("tokens", [1, 77])
@pytest.mark.parametrize("with_bias", [False, True])
def test_prepacked_products_are_the_plain_ones(monkeypatch, widest, tokens, with_bias) -> None:
    monkeypatch.setattr(prepacked, "WIDEST", widest)
    weight, bias = random(200, 96), random(200) if with_bias else None
    base, plain = prepacked_base(weight, bias), Dense(weight, bias)
    exact = Dense(weight.float(), None if bias is None else bias.float())
    assert len(base.forward.parts) == {6144: 1, 128: 2, 64: 4}[widest]
    x, grad = random(tokens, 96), random(tokens, 200)
    for residual in (None, random(tokens, 200)):
        wanted = exact.linear(x.float(), None if residual is None else residual.float())
        found = base.linear(x, residual)
        assert_as_exact_as_plain(found, plain.linear(x, residual), wanted)
    for added in (None, random(tokens, 96)):
        wanted = exact.input_gradient(grad.float(), None if added is None else added.float())
        found = base.input_gradient(grad, None if added is None else added.clone())
        assert_as_exact_as_plain(found, plain.input_gradient(grad, added), wanted)


@needs_vnni
@pytest.mark.parametrize("with_bias", [False, True])
def test_int8_products_are_near_the_plain_ones(with_bias) -> None:
    weight, bias = random(200, 96), random(200) if with_bias else None
    weight[3] *= 50  # one loud output channel and one loud token leave the others exact
    base, plain = int8_base(weight, bias), Dense(weight.float(), None)
    x, grad = random(60, 96), random(60, 200)
    x[5] *= 100
    x[6] = 0
    shift = torch.zeros(200) if bias is None else bias.float()
    found, wanted = base.linear(x, None), plain.linear(x.float(), None) + shift
    assert torch.equal(found[6], shift.bfloat16())
    for row in (0, 5):  # the loud channel is one number a row
        assert distance(found[row, 4:], wanted[row, 4:]) < 0.02
    assert distance(found[:5, :3], wanted[:5, :3]) < 0.02
    added = random(60, 96)
    wanted = plain.input_gradient(grad.float(), added.float())
    assert distance(base.input_gradient(grad, added), wanted) < 0.05  # its scales share a row


@pytest.fixture
def quantized(monkeypatch) -> list[bool]:
    """Whether each tensor that is rounded to 8 bits was contiguous, as a kernel takes it."""
    seen = []
    quantize = int8.ops.quantize
    monkeypatch.setattr(
        int8.ops, "quantize", lambda x, *a: seen.append(x.is_contiguous()) or quantize(x, *a)
    )
    return seen


def test_int8_takes_tensors_of_any_strides(quantized) -> None:
    base = int8_base(random(64, 32).float(), None)
    x, grad, added = random(32, 40).float(), random(64, 40).float(), random(64, 40).float()
    found = base.linear(x.T, added.T), base.input_gradient(grad.T, x.T)
    assert quantized == [True] * 3
    x, grad, added = (tensor.T.contiguous() for tensor in (x, grad, added))
    assert torch.equal(found[0], base.linear(x, added))
    assert torch.equal(found[1], base.input_gradient(grad, x))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_single_layer_takes_tensors_of_any_strides(rate, monkeypatch) -> None:
    """Such as the gradient of a sum, and the parts of a split product."""
    seen = []
    dropout = lora_linear.ops.dropout
    monkeypatch.setattr(
        lora_linear.ops,
        "dropout",
        lambda x, *a, **k: seen.append(x.is_contiguous()) or dropout(x, *a, **k),
    )
    a, b = torch.randn(4, 32, requires_grad=True), torch.randn(64, 4, requires_grad=True)
    base = Strict(torch.randn(64, 32), None)
    linear = LoraLinear(base, a, b, 2.0, torch.nn.Dropout(rate))
    wide = torch.randn(1, 7, 64, requires_grad=True)
    LoraFunction.apply(wide[..., :32], linear, a, b).sum().backward()
    assert wide.grad[..., :32].abs().min() > 0
    assert all(seen) and bool(seen) == bool(rate)


class Strict(Dense):
    """A base that takes no other strides."""

    def linear(self, x, residual):
        assert x.is_contiguous()
        return super().linear(x, residual)

    def input_gradient(self, grad, accumulate_into):
        assert grad.is_contiguous()
        return super().input_gradient(grad, accumulate_into)


@needs_bf16
def test_a_prepacked_model_gives_the_gradients_of_a_plain_one(model) -> None:
    other, exact = copy.deepcopy(model), copy.deepcopy(model).float()
    replace_linears(other, prepacked_base)
    assert_as_exact_as_plain(lora_gradients(other), lora_gradients(model), lora_gradients(exact))


@needs_vnni
def test_an_int8_model_gives_gradients_within_a_bound_of_bf16s(model) -> None:
    """docs/performance.md quotes this bound."""
    other = copy.deepcopy(model)
    replace_linears(other, int8_base)
    assert distance(lora_gradients(other), lora_gradients(model)) < 0.1


@needs_bf16
def test_a_replaced_model_generates_as_before_and_keeps_its_head(model) -> None:
    other, exact = copy.deepcopy(model), copy.deepcopy(model).float()
    replace_linears(other, prepacked_base)
    kinds = [type(m) for m in other.modules() if isinstance(m, torch.nn.Linear)]
    assert kinds.count(FrozenLinear) == 7 * 3
    assert type(other.get_output_embeddings()) is torch.nn.Linear
    prompt = torch.tensor([[5, 6, 7, 8]])
    for one in (model, other, exact):
        one.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = (one(prompt).logits for one in (other, model, exact))
        assert_as_exact_as_plain(*logits)
    x = random(2, 3, 32)
    linear, own = (m.model.layers[0].mlp.up_proj for m in (other, model))
    plain, wanted = F.linear(x, own.weight), F.linear(x.float(), own.weight.float())
    assert_as_exact_as_plain(linear(x), plain, wanted)


def prepared(model, settings, activations=0):
    """`model` with LoRA on its fast path, and the decision about its frozen weights."""
    adapted = add_lora(model, settings.method, "base", None)
    return adapted, apply_fast_path(adapted, settings, activations)[0]


def is_converted(model) -> bool:
    return any(isinstance(module, FrozenLinear) for module in model.modules())


@needs_bf16
def test_prepacking_is_chosen_where_there_is_room(model, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "available_bytes", lambda: 2**30)
    plain, decision = prepared(copy.deepcopy(model), config(), activations=2**29)
    assert (decision.name, decision.value) == ("backend.prepack", "off")
    assert "half of the free memory" in decision.reason
    assert not is_converted(plain)
    other, decision = prepared(copy.deepcopy(model), config(prepack=False))
    assert decision.value == "off" and not is_converted(other)
    other, decision = prepared(copy.deepcopy(model), config(prepack=True), activations=2**40)
    assert decision.value == "on" and is_converted(other)
    other, decision = prepared(model, config())
    assert decision.value == "on" and is_converted(other)


def test_float32_cannot_be_prepacked(model) -> None:
    model = model.float()
    assert prepared(copy.deepcopy(model), config())[1].value == "off"
    with pytest.raises(EnvironmentProblem, match=r"backend\.prepack=true: .* float32"):
        prepared(model, config(prepack=True))


@needs_vnni
def test_int8_is_what_the_config_says(model) -> None:
    adapted, decision = prepared(model, config(base_dtype="int8"))
    assert str(decision) == "model.base_dtype = int8 (set in the config)"
    assert is_converted(adapted)


def test_int8_without_vnni_is_refused(model, monkeypatch) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"avx2"})
    with pytest.raises(EnvironmentProblem, match="neither VNNI nor AMX"):
        prepared(model, config(base_dtype="int8"))


def layout(
    *, linear_bytes=0, activations=0, available=0, prepackable=True, on_gpu=False, **backend
):
    return choose_layout(
        config(**backend),
        dtype=torch.bfloat16,
        linear_bytes=linear_bytes,
        activations=activations,
        available=available,
        prepackable=prepackable,
        on_gpu=on_gpu,
    )[0]


def test_the_layout_is_decided_from_sizes_and_config_alone() -> None:
    room = {"linear_bytes": 10, "activations": 30}
    assert layout(**room, available=100) == "prepacked"
    assert layout(**room, available=99) == "as loaded"
    assert layout(**room, available=1, prepack=True) == "prepacked"
    assert layout(**room, available=100, prepack=False) == "as loaded"
    assert layout(**room, available=100, prepackable=False) == "as loaded"
    assert layout(**room, available=100, on_gpu=True) == "as loaded"
    assert layout(**room, available=100, compile=True) == "as loaded"
    assert layout(**room, available=100, name="ipex") == "as loaded"
    assert layout(**room, available=1, base_dtype="int8") == "int8"
    assert layout(**room, available=1, base_dtype="nf4", on_gpu=True) == "nf4"


_CONVERT = """
import re, sys, torch
from intel_ft.host import allocator
from intel_ft.layers.int8 import int8_base
from intel_ft.models.frozen_base import replace_linears

def anonymous():
    return int(re.search("RssAnon:[^0-9]*([0-9]+)", open("/proc/self/status").read())[1]) / 1024

torch.set_num_threads(1)
allocator.keep_freed_memory()
allocator._RELEASE_AFTER = 2**23
sizes = [(1024, 1024), (2048, 1024), (1024, 2048)] * 12
model = torch.nn.Sequential(*(torch.nn.Linear(i, o, bias=False).bfloat16() for i, o in sizes))
model.requires_grad_(False)
model.get_output_embeddings = lambda: None
weights, start = sum(i * o for i, o in sizes) / 2**20, anonymous()
replace_linears(model, int8_base)
print((anonymous() - start) / weights)
"""


@needs_vnni
def test_what_conversion_frees_does_not_accumulate() -> None:
    """Bytes more than before for each weight, whose bf16 is freed: 1.3 if nothing is released."""
    found = subprocess.run(
        [sys.executable, "-c", _CONVERT], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 0.6


def test_a_converted_weight_leaves_no_pages_of_the_models_file_in_memory(tmp_path, model) -> None:
    linear = model.model.layers[0].mlp.gate_proj
    weight, path = torch.randn(512, 4096).bfloat16(), tmp_path / "weights"
    path.write_bytes(weight.view(torch.uint8).numpy().tobytes())
    pages = torch.from_file(str(path), size=weight.numel(), dtype=torch.bfloat16)
    linear.weight.data = pages.view_as(weight)
    replace_linears(model, lambda weight, bias: Dense(weight.clone(), bias))
    text = Path("/proc/self/smaps").read_text()
    region = re.search(rf"^{pages.data_ptr():x}-.*?^Rss: +(\d+) kB", text, re.M | re.S)
    assert int(region[1]) == 0
    assert torch.equal(model.model.layers[0].mlp.gate_proj.frozen_base.weight, weight)
