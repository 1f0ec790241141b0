"""Reward models: scores, loss and gradients against Transformers' classifier in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.model_fixtures import TWO_LAYERS
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import LlamaForSequenceClassification as Classifier

from intel_ft.artifacts.model_folder import padding_token
from intel_ft.batching.row import build_row
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.errors import UserError
from intel_ft.models.adapter import add_lora, fuse
from intel_ft.models.load import load_base, load_for_packing
from intel_ft.models.reward import answer_scores, with_score
from intel_ft.templates.answers import pairs_of
from intel_ft.templates.examples import Examples
from intel_ft.training.comparison import Comparison, measures
from intel_ft.training.preference_loss import PreferenceLoss

LENGTHS = [(7, 13), (13, 9), (4, 8)]
"""Tokens of the chosen and the rejected answer of each pair, with their prompt."""


def examples():
    random = np.random.default_rng(1)
    tokens = [random.integers(3, 61, n).astype(np.int32) for pair in LENGTHS for n in pair]
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    mask = np.concatenate([np.arange(len(part)) >= 2 for part in tokens])
    return pairs_of(Examples(np.concatenate(tokens), mask, offsets))


def model_of(folder, student: str):
    base, why_not = load_for_packing(ModelConfig(name_or_path=str(folder)), torch.float32)
    assert why_not is None
    model = with_score(base, seed=3)
    if student == "full":
        return model.requires_grad_(True)
    method = MethodConfig(name="reward", r=4, alpha=8)
    model = add_lora(model, method, "base", None)
    assert fuse(model).value == "fused"
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1, generator=generator)
    return model


def merged_weights(model):
    """Each weight in float64, LoRA's product added."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    plain = {}
    for name, value in state.items():
        short = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        if ".lora_" in name or "original_module" in name:
            continue
        if ".base_layer." in name:
            a, b = (name.replace("base_layer", f"lora_{x}.default") for x in "AB")
            plain[short.replace(".base_layer", "")] = value + 2.0 * state[b] @ state[a]
        else:
            plain[short] = value
    return plain


@pytest.mark.parametrize("student", ["full", "lora"])
def test_loss_and_gradients_are_bradley_and_terrys(folder, student) -> None:
    data, model = examples(), model_of(folder, student).train()
    comparison = Comparison(PreferenceLoss.of(MethodConfig(name="reward")), data)
    sums = torch.zeros(9)
    for indices in (np.array([2, 0]), np.array([1])):
        row = build_row(data, indices)
        of_row = comparison.row_sums(model, row, indices, packed=True, dtype=torch.float32)
        of_row[0].backward()
        sums += of_row.detach()

    peer = Classifier(LlamaConfig(**TWO_LAYERS, num_labels=1)).double()
    peer.config.pad_token_id = None
    peer.load_state_dict(merged_weights(model))
    answers = [torch.from_numpy(data.answers[n][0].astype(np.int64))[None] for n in range(6)]
    scores = torch.cat([peer(input_ids=tokens).logits[0] for tokens in answers])
    loss = -F.logsigmoid(scores[::2] - scores[1::2]).sum()
    loss.backward()
    assert sums[0].item() == pytest.approx(loss.item(), rel=1e-5)
    found = measures(sums.double().numpy(), 3)
    assert found == {
        "accuracy": pytest.approx((scores[::2] > scores[1::2]).double().mean().item()),
        "reward_chosen": pytest.approx(scores[::2].mean().item(), abs=1e-5),
        "reward_rejected": pytest.approx(scores[1::2].mean().item(), abs=1e-5),
        "reward_margin": pytest.approx((scores[::2] - scores[1::2]).mean().item(), abs=1e-5),
    }
    wanted = {name: p.grad for name, p in peer.named_parameters()}
    if student == "lora":  # dW = g of the merged weight gives those of A and B
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                short = name.removeprefix("base_model.model.").replace(".lora_A.default", "")
                b = model.get_parameter(name.replace("lora_A", "lora_B")).double()
                wanted[name] = 2.0 * b.T @ wanted[short]
                wanted[name.replace("lora_A", "lora_B")] = (
                    2.0 * wanted[short] @ parameter.T.double()
                )
        wanted["base_model.model.score.modules_to_save.default.weight"] = wanted["score.weight"]
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    whole = torch.cat([gradient.flatten() for gradient in trained.values()]).norm()
    for name, gradient in trained.items():
        error = (gradient - wanted[name]).norm()
        assert error <= 1e-5 * (wanted[name].norm() + 0.1 * whole), name


def test_segments_score_alike_in_a_row_and_apart(folder) -> None:
    data, model = examples(), model_of(folder, "lora")
    row = build_row(data, np.arange(3))
    together = answer_scores(model, row, packed=True)
    base = load_base(ModelConfig(name_or_path=str(folder)), torch.float32)
    plain = with_score(base, seed=3)
    torch.testing.assert_close(
        answer_scores(plain, row, packed=False),
        torch.stack(
            [
                plain(torch.from_numpy(t)[None].long()).logits[0, 0].double()
                for t in (data.answers[n][0] for n in range(6))
            ]
        ),
        rtol=1e-5,
        atol=1e-6,
    )
    assert together.shape == (6,) and len(set(together.tolist())) == 6


def test_the_head_is_drawn_from_the_seed(folder) -> None:
    base = load_base(ModelConfig(name_or_path=str(folder)), torch.float32)
    one, same, other = (with_score(base, seed).score.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.std() == pytest.approx(0.15, rel=0.5)
    with torch.device("meta"):
        assert with_score(LlamaForCausalLM(LlamaConfig(**TWO_LAYERS))).score.weight.is_meta


def test_a_family_whose_classifier_is_another_is_refused() -> None:
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=61)
    assert with_score(GPT2LMHeadModel(config)).score.weight.shape == (1, 8)
    model = LlamaForCausalLM(LlamaConfig(**TWO_LAYERS))
    model.model = GPT2LMHeadModel(config).transformer
    with pytest.raises(UserError, match="Transformers has no sequence classifier"):
        with_score(model)


@pytest.mark.parametrize(("padding", "found"), [(5, 5), (2, None), (7, None), (None, None)])
def test_a_padding_token_that_ends_answers_is_none(padding, found) -> None:
    class Tokenizer:
        pad_token_id, eos_token_id = padding, 2

    assert padding_token(Tokenizer(), [2, 7]) == found
