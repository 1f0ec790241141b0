"""Which modules get an adapter in families that are not plain stacks of linear layers."""

import numpy as np
import pytest
import torch
from support.families import architectures
from transformers import AutoConfig, AutoModelForCausalLM

from intel_ft.batching.row import build_row
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.layers.mixture import routers
from intel_ft.models.adapter import add_lora, fuse, save_adapter
from intel_ft.models.flops import step_cost
from intel_ft.models.load import load_base, load_for_packing
from intel_ft.models.loss import loss_sum
from intel_ft.models.saved_adapter import apply_adapter
from intel_ft.models.targets import adapted_modules
from intel_ft.templates.examples import Examples

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FUSED = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
FEED = {"feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"}
TAKEN = {
    f"{owner}.{name}"
    for owner in ("mlp", "mlp.shared_experts")
    for name in ("gate_proj", "up_proj", "down_proj")
}


def build(name: str, dtype: torch.dtype = torch.float32):
    model_type, values = architectures.FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **values)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False).eval()


def row(length: int = 12):
    tokens = np.random.default_rng(0).integers(3, 4000, length).astype(np.int32)
    examples = Examples(tokens, np.arange(length) > 2, np.array([0, length]))
    return build_row(examples, np.array([0]))


def kinds(model, method: MethodConfig) -> tuple[set[str], set[str]]:
    """The kinds that are adapted, and those that the decisions name as frozen."""
    adapted, *frozen = adapted_modules(model, method)
    assert all(decision.reason for decision in frozen)
    names = {kind for decision in frozen for kind in decision.value.split(", ")}
    return set(adapted.value.rpartition(" (")[0].split(", ")), names


@pytest.mark.parametrize(
    ("family", "adapted", "frozen"),
    [
        ("Mixtral", {*ATTENTION, *FUSED}, {"mlp.gate"}),
        ("Qwen 2 MoE", {*ATTENTION, *FUSED, "mlp.shared_expert_gate"}, {"mlp.gate"}),
        ("DeepSeek V2", {*FUSED, *TAKEN, "self_attn.o_proj"}, {"mlp.gate"}),
        ("DeepSeek V3", {*FUSED, *TAKEN, "self_attn.o_proj"}, {"mlp.gate"}),
        ("GLM 4 MoE", {*ATTENTION, *FUSED, *TAKEN}, {"mlp.gate"}),
        ("gpt-oss", {*ATTENTION, *FUSED}, {"mlp.router"}),
        ("Phi 3.5 MoE", {*ATTENTION, *FUSED}, {"mlp.router"}),
        ("Llama 4", {"feed_forward.shared_expert.up_proj", *FEED}, {"feed_forward.router"}),
        ("Granite 3 MoE", {"block_sparse_moe.input_linear"}, {"block_sparse_moe.router.layer"}),
        ("LFM 2 MoE", {*FEED}, {"feed_forward.gate"}),
        ("Jamba", {*FEED}, {"feed_forward.router", "mamba.dt_proj"}),
        ("Falcon", {"self_attention.query_key_value"}, {"embeddings", "norms and head"}),
        ("Falcon H1", {*ATTENTION, "mamba.in_proj"}, {"mamba.out_proj"}),
        ("Mamba", {"mixer.in_proj", "mixer.x_proj"}, {"mixer.out_proj", "mixer.dt_proj"}),
        ("Mamba 2", {"mixer.in_proj"}, {"mixer.out_proj"}),
        (
            "Nemotron H",
            {"mixer.q_proj", "mixer.in_proj", "mixer.experts.up_proj"},
            {"mixer.out_proj", "mixer.gate"},
        ),
        (
            "Gemma 3, with images",
            {*ATTENTION, "mlp.up_proj"},
            {"model.vision_tower", "model.multi_modal_projector"},
        ),
    ],
)
def test_all_linear_adapts_what_trains_and_names_the_rest(family, adapted, frozen) -> None:
    method = MethodConfig(r=2, alpha=4)
    model = add_lora(build(family, torch.bfloat16), method, "base", None)
    assert step_cost(model).linear > 0
    found, left = kinds(model, method)
    assert adapted <= found
    assert frozen <= left
    assert not found & left
    fuse(model)
    if family != "Gemma 3, with images":  # load_base makes that trainable: below
        loss_sum(model.train(), row(), packed=False).backward()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                assert weight.grad is not None and weight.grad.abs().max() > 0, name


def test_gemma_3_with_images_trains_on_text_as_its_language_model_does(tmp_path) -> None:
    architectures.write_model(*architectures.FAMILIES["Gemma 3, with images"], tmp_path)
    settings = ModelConfig(name_or_path=str(tmp_path))
    base, reason = load_for_packing(settings, torch.float32)
    assert reason is None
    expected = load_base(settings, torch.float32)(
        input_ids=torch.from_numpy(row().tokens)[None].long()
    ).logits[0]
    model = add_lora(base, MethodConfig(r=2), "base", None).train()
    targets = torch.from_numpy(row().targets)
    predict = torch.from_numpy(row().predict)
    loss = torch.nn.functional.cross_entropy(expected[predict], targets.long(), reduction="sum")
    found = loss_sum(model, row(), packed=True)
    found.backward()
    torch.testing.assert_close(found, loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("dropout", 0.05, "method.dropout=0.05"),
        ("use_dora", True, "method.use_dora=true"),
        ("init", "pissa", "method.init=pissa"),
        ("init", "olora", "method.init=olora"),
    ],
)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "w1", "w3"], r".*\.(q_proj|w1|w3)"])
def test_what_peft_cannot_do_with_fused_experts_names_our_key(
    option, value, named, targets
) -> None:
    method = MethodConfig(r=2, target_modules=targets, **{option: value})
    with pytest.raises(UserError) as caught:
        add_lora(build("Mixtral"), method, "base", None)
    assert str(caught.value).startswith(f"{named}: ")
    assert "method.target_modules=[k_proj, o_proj, q_proj, v_proj]" in str(caught.value)
    assert "ParamWrapper" not in str(caught.value)


def test_dropout_on_the_layers_beside_fused_experts_is_fine() -> None:
    method = MethodConfig(r=2, dropout=0.1, target_modules=["q_proj", "v_proj"])
    model = add_lora(build("Mixtral"), method, "base", None)
    found, left = kinds(model, method)
    assert found == {"self_attn.q_proj", "self_attn.v_proj"}
    assert {"self_attn.o_proj", *FUSED, "mlp.gate"} <= left


@pytest.mark.parametrize(
    ("family", "target"),
    [("Mamba", "out_proj"), ("Llama 4", "router"), ("Falcon H1", r".*(q|out)_proj")],
)
def test_a_module_that_cannot_be_adapted_is_refused_by_name(family, target) -> None:
    targets = target if "*" in target else [target]
    with pytest.raises(UserError, match=r"method.target_modules: .* cannot be adapted: "):
        add_lora(build(family), MethodConfig(r=2, target_modules=targets), "base", None)


@pytest.mark.parametrize("family", ["Qwen 3 MoE", "DeepSeek V3", "gpt-oss", "Llama 3", "GPT-2"])
def test_attention_only_adapts_attention(family) -> None:
    name = "Llama 2, 3" if family == "Llama 3" else family
    method = MethodConfig(r=2, target_modules="attention-only", dropout=0.1)
    found, _ = kinds(add_lora(build(name), method, "base", None), method)
    assert found and all(kind.startswith(("self_attn.", "attn.")) for kind in found)


def test_attention_only_needs_attention() -> None:
    with pytest.raises(UserError, match=r"attention-only: no linear layer .* in_proj"):
        add_lora(build("Mamba"), MethodConfig(target_modules="attention-only"), "base", None)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "gate_proj", "up_proj"], {"self_attn.q_proj", "mlp.experts.gate_up_proj"}),
        (["experts.down_proj"], {"mlp.experts.down_proj"}),
        ([r"gate_up_proj"], {"mlp.experts.gate_up_proj"}),
        (r".*experts\.(w1|w2|w3)", FUSED),
        (["q_proj", "gate"], {"self_attn.q_proj", "mlp.gate"}),
    ],
)
def test_names_reach_experts_and_routers(targets, expected) -> None:
    method = MethodConfig(r=2, target_modules=targets)
    found, _ = kinds(add_lora(build("Qwen 3 MoE"), method, "base", None), method)
    assert found == expected


def test_a_name_that_no_expert_has_is_told_the_experts_names() -> None:
    method = MethodConfig(r=2, target_modules=["experts.gate_up_projj"])
    with pytest.raises(
        UserError, match=r"mean gate_up_proj\?\).*linear layers and experts are .*w1"
    ):
        add_lora(build("Qwen 3 MoE"), method, "base", None)


def test_half_of_a_fused_matrix_is_refused() -> None:
    with pytest.raises(UserError, match=r"gate_proj .* one parameter with up_proj: name both"):
        add_lora(build("OLMoE"), MethodConfig(target_modules=["gate_proj"]), "base", None)


@pytest.mark.parametrize("family", ["DeepSeek V2", "DeepSeek V3", "Phi 3.5 MoE"])
def test_a_router_that_peft_cannot_wrap_is_refused_if_it_is_named(family) -> None:
    name = "router" if "Phi" in family else "gate"
    with pytest.raises(UserError, match=rf"mlp\.{name} cannot be adapted: "):
        add_lora(build(family), MethodConfig(target_modules=[name]), "base", None)


@pytest.mark.parametrize(
    ("family", "leaf"),
    [("DeepSeek V3", "gate"), ("Granite 3 MoE", "router"), ("LFM 2 MoE", "gate")],
)
def test_a_router_is_known_as_a_linear_layer_and_as_a_module_of_its_own(family, leaf) -> None:
    """Versions of Transformers differ in that."""
    model = build(family)
    found = routers(model)
    assert found and all(f".{leaf}" in name for name in found)

    class Own(torch.nn.Module):
        def __init__(self, experts: int, size: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(experts, size))

    for name, module in found.items():
        plain = type(module) is torch.nn.Linear
        shape = module.weight.shape
        other = Own(*shape) if plain else torch.nn.Linear(shape[1], shape[0], bias=False)
        parent, _, child = name.rpartition(".")
        # Whatever it is called: its role is one row for each expert.
        setattr(model.get_submodule(parent), child, other)
        renamed = model.get_submodule(parent)
        renamed.add_module("chooser", renamed._modules.pop(child))
    chosen = routers(model)
    assert len(chosen) == len(found)
    assert all("chooser" in name for name in chosen)


def test_an_adapter_that_left_modules_out_loads_again(tmp_path) -> None:
    model = add_lora(build("DeepSeek V3"), MethodConfig(r=2), "base", None)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tokens = torch.from_numpy(row().tokens)[None].long()
    expected = model.eval()(input_ids=tokens).logits
    save_adapter(model, tmp_path)
    loaded = apply_adapter(build("DeepSeek V3"), tmp_path)
    torch.testing.assert_close(loaded(input_ids=tokens).logits, expected)
    torch.testing.assert_close(loaded.merge_and_unload()(input_ids=tokens).logits, expected)
