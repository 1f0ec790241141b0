"""Each method on a small model against its formulas in float64: gradients, start, saved adapter."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from support.model_fixtures import SHAPE, assert_as_exact_as_plain, row_of
from transformers import LlamaConfig, LlamaForCausalLM

from intel_ft.artifacts.ir_weights import CompressedTensor, dequantize, pack
from intel_ft.config_method import MethodConfig
from intel_ft.errors import UserError
from intel_ft.layers import packed_attention
from intel_ft.layers.nf4 import nf4_base
from intel_ft.models import lora_init
from intel_ft.models.adapter import add_lora, fuse
from intel_ft.models.frozen_base import FrozenLinear, replace_linears
from intel_ft.models.loss import even_rows, loss_sum
from intel_ft.training.distillation import Teacher
from intel_ft.training.lora_plus import scale_learning_rate_of_b
from intel_ft.training.trainable import Adapter

ROW = row_of(40, 60, 30)
# QLoRA (Dettmers et al. 2023), appendix E.
NF4_LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)


def make_model(seed: int = 0, **changed) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | changed)).requires_grad_(False)
    model.set_attn_implementation(packed_attention.NAME)
    return model.eval()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model()


def moved(model):
    """The model with its trained weights somewhere else than where they began."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)
    return model


def gradients(model, loss) -> dict[str, torch.Tensor]:
    loss.backward()
    return {name: w.grad.double() for name, w in model.named_parameters() if w.requires_grad}


def assert_close(found, wanted, bound) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= bound * gradient.norm(), name


def logits64(model) -> torch.Tensor:
    """Float64 logits at the row's supervised tokens, segment by segment, attention written out."""
    wanted = set(ROW.predict.tolist())
    parts = []
    for start, end in zip(ROW.bounds[:-1], ROW.bounds[1:], strict=True):
        tokens = torch.from_numpy(ROW.tokens[start:end])[None]
        whole = model(input_ids=tokens, use_cache=False).logits[0]
        parts.append(whole[[i - start for i in range(start, end) if i in wanted]])
    return torch.cat(parts)


def double(model):
    """A copy in float64, with Transformers' own attention."""
    other = copy.deepcopy(model).double()
    (other.get_base_model() if isinstance(other, PeftModel) else other).set_attn_implementation(
        "eager"
    )
    return other


def distillation64(student, teacher, method: MethodConfig) -> torch.Tensor:
    """The loss of models.teacher as its docstring has it."""
    t, w, targets = method.temperature, method.teacher_weight, torch.from_numpy(ROW.targets)
    labels = -(student.log_softmax(-1)[range(len(targets)), targets]).sum()
    size = min(student.shape[1], teacher.shape[1])
    q, p = ((x[:, :size] / t).softmax(-1) for x in (student, teacher))
    if method.divergence == "reverse":
        p, q = q, p
    return (1 - w) * labels + w * t**2 * (p * (p.log() - q.log())).sum()


METHOD = MethodConfig(
    name="distill", teacher="x", r=4, alpha=8, temperature=1.5, teacher_weight=0.7
)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_full_students_gradients_are_those_of_the_formula(divergence, tied) -> None:
    method = METHOD.model_copy(update={"divergence": divergence, "student": "full"})
    student = make_model(tie_word_embeddings=tied).requires_grad_(True)
    larger = make_model(1, hidden_size=64, vocab_size=64)  # its vocabulary padded
    exact = double(student)
    with torch.no_grad():
        known = logits64(double(larger))[:, :61]
    wanted = gradients(exact, distillation64(logits64(exact), known, method))
    loss = Teacher(method, larger, 61).loss_sum(student, ROW, packed=True)
    assert_close(gradients(student, loss), wanted, 1e-4)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_an_adapters_gradients_towards_its_own_base(model, divergence) -> None:
    method = METHOD.model_copy(update={"divergence": divergence})
    with torch.no_grad():
        known = logits64(double(model))
    student = moved(add_lora(model, method, "base", None).train())
    exact = double(student)
    wanted = gradients(exact, distillation64(logits64(exact), known, method))
    fuse(student)
    loss = Teacher(method, None, 61).loss_sum(student, ROW, packed=True)
    assert_close(gradients(student, loss), wanted, 1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(model) -> None:
    method = METHOD.model_copy(update={"teacher_weight": 1.0})
    student = add_lora(model, method, "base", None)
    assert abs(Teacher(method, None, 61).loss_sum(student, ROW, packed=True).item()) < 1e-3


def test_chunks_change_nothing(monkeypatch) -> None:
    student, teacher = make_model(tie_word_embeddings=True).requires_grad_(True), make_model(1)

    def found():
        student.zero_grad()
        return gradients(student, Teacher(METHOD, teacher, 61).loss_sum(student, ROW, packed=True))

    whole = found()
    monkeypatch.setattr("intel_ft.models.loss.chunk_rows", lambda *_, **__: 7)
    assert_close(found(), whole, 1e-5)


@pytest.mark.parametrize(
    ("rows", "most", "each"),
    [(1048, 512, 352), (512, 512, 512), (513, 512, 288), (5, 512, 32), (0, 512, 32), (20, 7, 7)],
)
def test_chunks_of_the_head_are_even(rows, most, each) -> None:
    assert even_rows(rows, most) == each


def test_all_weights_have_the_gradients_of_cross_entropy() -> None:
    model = make_model(tie_word_embeddings=True).requires_grad_(True)
    exact = double(model)
    targets = torch.from_numpy(ROW.targets)
    wanted = gradients(exact, F.cross_entropy(logits64(exact), targets, reduction="sum"))
    assert_close(gradients(model, loss_sum(model, ROW, packed=True)), wanted, 1e-4)
    model.zero_grad()
    found = gradients(model, loss_sum(model, ROW, packed=True, dtype=torch.bfloat16))
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    plain.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(logits64(plain).float(), targets, reduction="sum")
    plain_gradients = gradients(plain, loss)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_as_exact_as_plain(found[name], plain_gradients[name], gradient)


def test_nf4_gradients_are_those_of_the_weights_it_stands_for(model) -> None:
    pytest.importorskip("bitsandbytes")
    replace_linears(model, nf4_base)
    plain = make_model()
    for name, layer in model.named_modules():
        if isinstance(layer, FrozenLinear):
            plain.get_submodule(name).weight.copy_(layer.frozen_base.weight())
    adapted = []
    for one in (model, plain):
        torch.manual_seed(2)  # the same adapter on both
        adapted.append(moved(add_lora(one, MethodConfig(r=4, alpha=8), "base", None).train()))
    ours, exact = adapted[0], double(adapted[1])
    targets = torch.from_numpy(ROW.targets)
    wanted = gradients(exact, F.cross_entropy(logits64(exact), targets, reduction="sum"))
    assert fuse(ours).value == "fused"
    assert_close(gradients(ours, loss_sum(ours, ROW, packed=True)), wanted, 1e-4)


@pytest.mark.parametrize("shape", [(64, 128), (128, 96), (48, 32), (10, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_is_the_nearest_level_times_the_blocks_largest(shape, dtype) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    found = nf4_base(weight, None).weight()
    assert (found.shape, found.dtype) == (shape, dtype)
    blocks = F.pad(weight.float().flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4_LEVELS)
    nearest = levels[((blocks / largest)[..., None] - levels).abs().argmin(-1)] * largest
    wanted = nearest.flatten()[: weight.numel()].view(shape)
    assert (found.float() - wanted).norm() < 0.01 * wanted.norm()  # the constants' 8 bits
    assert 0.08 < (found - weight).float().norm() / weight.float().norm() < 0.11


def test_nf4_takes_a_quarter_of_bf16(model) -> None:
    pytest.importorskip("bitsandbytes")
    weight = torch.randn(256, 1024).bfloat16()
    state = (base := nf4_base(weight, None)).state
    held = [base.values, state.absmax, state.state2.absmax]
    assert sum(part.nbytes for part in held) < 0.26 * weight.nbytes


@pytest.fixture(params=["pissa", "olora"])
def begun(request, model):
    """An adapter that began as a part of the base, and the base as it was."""
    method = MethodConfig(r=4, alpha=6, init=request.param, use_rslora=True)
    original = copy.deepcopy(model)
    ours = add_lora(model, method, "base", None)
    begun = lora_init.from_base(ours, request.param)
    lora_init.start_as(ours, begun)
    lora_init.subtract_from_base(ours, begun)
    return Adapter(ours, begun), original, request.param


def run(model) -> torch.Tensor:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    base.set_attn_implementation("sdpa")
    with torch.no_grad():
        return model(torch.from_numpy(ROW.tokens)[None]).logits


def test_an_adapter_begins_as_a_part_of_the_base(begun) -> None:
    adapter, original, how = begun
    torch.testing.assert_close(run(adapter.model), run(original), rtol=1e-3, atol=1e-3)
    name, (a, b) = next(iter(adapter.initial.items()))
    whole = original.get_submodule(name.removeprefix("base_model.model.")).weight
    part = adapter.model.get_submodule(name).scaling["default"] * (b @ a)
    u, s, v = torch.linalg.svd(whole)
    if how == "olora":
        q, r = torch.linalg.qr(whole)
        torch.testing.assert_close(b @ a, q[:, :4] @ r[:4], rtol=1e-3, atol=1e-4)
    else:
        torch.testing.assert_close(part, u[:, :4] * s[:4] @ v[:4], rtol=1e-3, atol=1e-3)


def test_it_is_saved_for_the_original_base_and_loaded_from_there(begun, tmp_path) -> None:
    adapter, original, _ = begun
    moved(adapter.model)
    adapter.save(tmp_path)
    trained = {n: p.clone() for n, p in adapter.model.named_parameters() if p.requires_grad}
    wanted = run(adapter.model)
    plain = PeftModel.from_pretrained(original, tmp_path)
    torch.testing.assert_close(run(plain), wanted, rtol=1e-3, atol=1e-3)
    adapter.check(tmp_path)
    moved(adapter.model)
    adapter.load(tmp_path)
    for name, weight in adapter.model.named_parameters():
        if weight.requires_grad:
            assert torch.equal(weight, trained[name])
    for name, pair in lora_init.load_from_original(tmp_path, 4)[1].items():
        assert all(map(torch.equal, pair, adapter.initial[name]))
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * len(adapter.initial)


def test_a_rank_wider_than_the_layer_is_refused(model) -> None:
    ours = add_lora(model, MethodConfig(r=40, init="pissa"), "base", None)
    with pytest.raises(UserError, match=r"method\.r=40 .* base_model.* is only \d+ wide"):
        lora_init.from_base(ours, "pissa")


def test_loftq_starts_as_what_was_rounded_away(model) -> None:
    ours = add_lora(model, MethodConfig(r=4, alpha=6, init="loftq"), "base", None)
    name = next(n for n, m in ours.named_modules() if n.endswith("q_proj"))
    weight = ours.get_submodule(name).base_layer.weight.detach()
    scales = (weight.abs().amax(1, keepdim=True) / 7).half()
    codes = (weight / scales).round().to(torch.int16)
    stored = CompressedTensor(
        *(pack(codes.numpy()), scales.numpy(), None, tuple(weight.shape), 4, True, (0, 0, None))
    )
    initial = lora_init.from_rounding(ours, {name.removeprefix("base_model.model."): stored})
    assert list(initial) == [name]
    u, s, v = torch.linalg.svd(weight - torch.from_numpy(dequantize(stored)))
    a, b = initial[name]
    torch.testing.assert_close(1.5 * b @ a, u[:, :4] * s[:4] @ v[:4], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["norm", "input_layernorm", "lm_head", "embed_tokens"])
def test_modules_to_save_train_whole(name) -> None:
    method = MethodConfig(r=4, alpha=8, modules_to_save=[name])
    ours, exact = (moved(add_lora(make_model(), method, "base", None).train()) for _ in range(2))
    exact.double().get_base_model().set_attn_implementation("eager")
    decision = fuse(ours)
    assert (decision.value == "fused") == (name != "input_layernorm")
    targets = torch.from_numpy(ROW.targets)
    wanted = gradients(exact, F.cross_entropy(logits64(exact), targets, reduction="sum"))
    assert any("modules_to_save" in key for key in wanted)
    assert_close(gradients(ours, loss_sum(ours, ROW, packed=True)), wanted, 1e-4)


def test_lora_plus_gives_b_a_rate_of_its_own(model) -> None:
    ours = add_lora(model, MethodConfig(r=4, modules_to_save=["norm"]), "base", None)
    weights = dict(ours.named_parameters())
    trained = [weight for weight in weights.values() if weight.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trained}, {"params": []}], lr=0.5)
    scale_learning_rate_of_b(optimizer, ours, 8.0)
    rates = {id(w): group["lr"] for group in optimizer.param_groups for w in group["params"]}
    assert len(rates) == len(trained) == 2 * 21 + 1
    for name, weight in weights.items():
        if weight.requires_grad:
            assert rates[id(weight)] == (4.0 if "lora_B" in name else 0.5)


def test_modules_to_save_that_do_not_work_are_refused() -> None:
    tied = make_model(tie_word_embeddings=True)
    with pytest.raises(UserError, match="lm_head shares its weight"):
        add_lora(tied, MethodConfig(modules_to_save=["lm_head"]), "base", None)
    with pytest.raises(UserError, match="no module lm_haed"):
        add_lora(tied, MethodConfig(modules_to_save=["lm_haed"]), "base", None)
