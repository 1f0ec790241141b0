"""No family is packed whose segments see one another, or shares what it computes otherwise."""

import pytest
import torch
import torch.nn.functional as F
from support.families import architectures
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from intel_ft.layers import packed_attention
from intel_ft.layers.packed_attention import row_inputs, why_not_packable, why_not_shareable
from intel_ft.training.model_sizes import model_sizes

UNPACKED = {
    "Falcon H1",
    "Granite 4, hybrid",
    "LFM 2",
    "LFM 2 MoE",
    "Llama 4",
    "Qwen 3 Next",
    "Qwen 3.5",
}


def _supported(name: str) -> bool:
    config = AutoConfig.for_model(architectures.FAMILIES[name][0])
    return bool(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_attention_backend)


@torch.no_grad()
def logits(model, *segments: torch.Tensor) -> torch.Tensor:
    """The logits of the last segment of a packed row."""
    lengths = torch.tensor([len(segment) for segment in segments])
    positions = torch.cat([torch.arange(len(segment)) for segment in segments])
    bounds = F.pad(lengths.cumsum(0), (1, 0))
    found = model(**row_inputs(torch.cat(segments), positions, bounds)).logits[0]
    return found[-len(segments[-1]) :]


@pytest.mark.parametrize("name", [name for name in architectures.FAMILIES if _supported(name)])
def test_a_family_that_packs_keeps_its_segments_apart(name) -> None:
    model_type, values = architectures.FAMILIES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **values)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=packed_attention.NAME, dtype=torch.float32
    ).eval()
    reason = why_not_packable(model)
    assert (reason is not None) == (name in UNPACKED), reason
    if reason is not None:
        return
    assert model_sizes(model).packs
    first, other, second = (torch.arange(n) * 5 + n for n in (9, 7, 40))  # beyond the windows
    alone = logits(model, second)
    for before in ((first,), (other,), (first, other)):
        torch.testing.assert_close(logits(model, *before, second), alone, rtol=1e-4, atol=1e-4)
    assert why_not_shareable(model) is None
    assert_shared_beginnings_change_nothing(model)


@torch.no_grad()
def assert_shared_beginnings_change_nothing(model) -> None:
    """Three sequences of which two continue the first one's beginning, longer than the windows."""
    begin, one, other, alone = ((torch.arange(n) * 3 + n) % 61 for n in (21, 23, 17, 9))
    ends = [len(begin) + len(one), len(begin) + len(other), len(alone)]
    parts = [begin, one, other, alone]
    bounds = F.pad(torch.tensor([len(part) for part in parts]).cumsum(0), (1, 0))
    positions = [torch.arange(ends[0]), torch.arange(len(begin), ends[1]), torch.arange(ends[2])]
    parents = torch.tensor([-1, 0, 0, -1])
    row = row_inputs(torch.cat(parts), torch.cat(positions), bounds, parents)
    found = model(**row).logits[0].split([len(part) for part in parts])
    wanted = [logits(model, torch.cat((begin, part))) for part in (one, other)]
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat(found[:2]), wanted[0], **close)
    torch.testing.assert_close(found[2], wanted[1][len(begin) :], **close)
    torch.testing.assert_close(found[3], logits(model, alone), **close)


def test_a_trial_of_layers_that_are_alike_runs_the_first_of_them() -> None:
    model_type, values = architectures.FAMILIES["Llama 2, 3"]
    config = AutoConfig.for_model(model_type, **values | {"num_hidden_layers": 3})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=packed_attention.NAME)
    layers, runs, forward = model.model.layers, set(), model.forward
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: runs.add(index))
    assert why_not_packable(model) is None
    assert why_not_shareable(model) is None
    assert runs == {0}
    assert model.model.layers is layers

    def with_three(**inputs):
        if len(model.model.layers) < 3:
            raise IndexError
        return forward(**inputs)

    model.forward = with_three  # where the first layer alone fails, all are tried
    assert why_not_packable(model) is None
    assert runs == {0, 1, 2}
    runs.clear()
    model.forward, layers[2].self_attn.sliding_window = forward, 2  # now they are not alike
    assert why_not_packable(model) is None
    assert runs == {0, 1, 2}


def test_attention_gets_the_bounds_that_its_layer_keeps(monkeypatch) -> None:
    """As Nemotron of Transformers 5.17, also where a layer runs again for its gradient."""

    def forward(self, hidden_states, position_embeddings=None, **_):
        inputs = {"attention_mask": None, "position_embeddings": position_embeddings}
        found, _ = self.self_attn(self.input_layernorm(hidden_states), **inputs)
        return hidden_states + found

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    model_type, values = architectures.FAMILIES["Llama 2, 3"]
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **values),
        attn_implementation=packed_attention.NAME,
        dtype=torch.float32,
    )
    assert why_not_packable(model) is None
    first, second = torch.arange(9), torch.arange(7) * 5
    torch.testing.assert_close(logits(model, first, second), logits(model, second))
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    with torch.enable_grad():
        logits.__wrapped__(model, first, second).sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.norm() > 0


def test_plan_packs_no_family_with_a_convolution() -> None:
    model_type, values = architectures.FAMILIES["LFM 2"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    assert not model_sizes(model).packs
