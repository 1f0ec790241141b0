"""Preference losses and their gradients: against float64 formulas, and against TRL's trainers."""

import math

import numpy as np
import pytest
import torch

from intel_ft.batching.row import build_row
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.models import loss as loss_module
from intel_ft.models.adapter import add_lora, fuse
from intel_ft.models.load import load_base, load_for_packing
from intel_ft.templates.answers import judged, pairs_of
from intel_ft.templates.examples import Examples
from intel_ft.training.comparison import Comparison, Reference, measures
from intel_ft.training.preference_loss import Answers, PreferenceLoss

PAIRS = [(4, 3, 9), (7, 6, 2), (3, 1, 5)]
"""Tokens of the prompt, the chosen and the rejected answer of each pair."""
LOSSES = {
    "dpo": {"beta": 0.3},
    "dpo, smoothed": {"loss": "dpo", "beta": 0.3, "label_smoothing": 0.1},
    "rpo": {"loss": "dpo", "beta": 0.3, "sft_weight": 0.7},
    "ipo": {"loss": "ipo", "beta": 0.3},
    "simpo": {"loss": "simpo", "beta": 2.0, "gamma": 0.5},
    "orpo": {"loss": "orpo", "beta": 0.2},
    "cpo": {"loss": "cpo", "beta": 0.2, "label_smoothing": 0.2},
    "kto": {"loss": "kto", "beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.8},
}


def method_of(name: str, **more) -> MethodConfig:
    return MethodConfig(**{"name": "preference"} | LOSSES[name] | more)


def examples_of(lengths) -> Examples:
    """Prompts with answers: each (prompt, answer) tokens long."""
    random = np.random.default_rng(3)
    tokens, supervised = [], []
    for prompt, answer in lengths:
        tokens.append(random.integers(3, 61, prompt + answer).astype(np.int32))
        supervised.append(np.arange(prompt + answer) >= prompt)
    offsets = np.cumsum([0, *(len(part) for part in tokens)], dtype=np.int64)
    return Examples(np.concatenate(tokens), np.concatenate(supervised), offsets)


def compared(name: str):
    answers = examples_of([(p, n) for p, *both in PAIRS for n in both])
    tokens = answers.tokens.copy()
    for pair, (prompt, *_) in enumerate(PAIRS):  # both answers have the same prompt
        first, second = answers.offsets[2 * pair : 2 * pair + 2]
        tokens[second : second + prompt] = tokens[first : first + prompt]
    answers = Examples(tokens, answers.supervised, answers.offsets)
    if name != "kto":
        return pairs_of(answers)
    return judged(answers, np.array([True, False, False, True, True, False]), 16)


def written(name: str, m: MethodConfig, chosen, rejected, counts, references):
    """The formulas of the papers, in float64 and without the package's functions.

    chosen, rejected: log-probabilities of one pair; counts: their tokens.
    """
    (c, r), (rc, rr) = counts, references
    beta, smooth = m.beta, m.label_smoothing

    def minus_log_sigmoid(x):
        return torch.log1p(torch.exp(-x))

    ratio = (chosen - rc) - (rejected - rr)
    if m.loss == "dpo":
        loss = (1 - smooth) * minus_log_sigmoid(beta * ratio)
        loss = loss + smooth * minus_log_sigmoid(-beta * ratio)
        return loss + (m.sft_weight or 0) * -chosen / c
    if m.loss == "ipo":
        return ((chosen - rc) / c - (rejected - rr) / r - 1 / (2 * beta)) ** 2
    if m.loss == "simpo":
        return minus_log_sigmoid(beta * (chosen / c - rejected / r) - m.gamma)
    if m.loss == "cpo":
        loss = (1 - smooth) * minus_log_sigmoid(beta * (chosen - rejected))
        return loss + smooth * minus_log_sigmoid(-beta * (chosen - rejected)) - chosen / c
    odds_c, odds_r = (
        torch.exp(x / n) / (1 - torch.exp(x / n)) for x, n in ((chosen, c), (rejected, r))
    )
    return -chosen / c + beta * minus_log_sigmoid(torch.log(odds_c / odds_r))


def plain_log_prob(model, examples: Examples, index: int):
    """As a plain loop has it: the whole logits of one answer."""
    tokens, supervised = map(torch.from_numpy, examples[index])
    tokens = tokens.long()
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].double()
    every = logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]
    return every[supervised[1:]].sum()


def plain_loss(name, m, model, data, reference):
    """The summed loss of all examples, from plain log-probabilities."""
    if name == "kto":
        with torch.no_grad():
            moved = [plain_log_prob(model, data.others, n) for n in range(len(data))]
        z = max(0.0, float(sum(moved)) / len(data) - float(reference.others.mean()))
        total = 0
        for index, good in enumerate(data.good):
            ahead = m.beta * (plain_log_prob(model, data, index) - reference.answers[index] - z)
            weight = m.desirable_weight if good else m.undesirable_weight
            total = total + weight * (1 - 1 / (1 + torch.exp(-ahead if good else ahead)))
        return total, z
    total = 0
    for pair in range(len(data)):
        answers = (2 * pair, 2 * pair + 1)
        log_probs = [plain_log_prob(model, data.answers, index) for index in answers]
        counts = [int(data.answers[index][1].sum()) for index in answers]
        values = [0.0, 0.0] if reference is None else reference.answers[list(answers)]
        total = total + written(name, m, *log_probs, counts, values)
    return total, 0.0


def references(name: str, data):
    """What some other model thinks of the answers."""
    if name in ("simpo", "orpo", "cpo"):
        return None
    random = np.random.default_rng(5)
    count = len(data.answers)
    if name == "kto":
        return Reference(random.normal(-20, 3, count), random.normal(-26, 1, len(data)))
    return Reference(random.normal(-20, 3, count))


def build(folder, m: MethodConfig, *, packed: bool = True):
    """The student as a run has it; not packed: as Transformers and peft have it."""
    settings = ModelConfig(name_or_path=str(folder))
    if packed:
        base, reason = load_for_packing(settings, torch.float32)
        assert reason is None
    else:
        base = load_base(settings, torch.float32, "sdpa")
    if m.student == "full":
        return base.requires_grad_(True)
    model = add_lora(base, m, "base", None)
    if packed:
        fuse(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=generator)
    return model


def gradients(model):
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_close(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    whole = torch.cat([g.flatten() for g in wanted.values()]).norm()
    assert whole > 0
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * (gradient.norm() + 0.1 * whole), name


def rows_of(data):
    """All examples in two rows."""
    return [np.array([1]), np.array([n for n in range(len(data)) if n != 1])]


def own_loss(comparison, model, *, packed=True):
    """The sums over all examples; the gradient is in the model."""
    data, z = comparison.examples, 0.0
    rows = rows_of(data)
    if comparison.loss.name == "kto":
        moved = comparison.divergence_sum(model, rows, packed=packed, dtype=torch.float32)
        z = max(0.0, moved / len(data))
    total = 0
    for indices in rows:
        row = build_row(data, indices)
        sums = comparison.row_sums(
            model, row, indices, packed=packed, dtype=torch.float32, divergence=z
        )
        sums[0].backward()
        total = total + sums.detach()
    return total, z


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("student", ["lora", "full"])
def test_losses_and_gradients_are_those_of_the_formulas(folder, name, student) -> None:
    m = method_of(name, student=student)
    data = compared(name)
    reference = references(name, data)
    comparison = Comparison(PreferenceLoss.of(m), data, reference)
    model = build(folder, m)
    found, z = own_loss(comparison, model)
    own, model = gradients(model), build(folder, m, packed=False)
    wanted, z_wanted = plain_loss(name, m, model, data, reference)
    wanted.backward()
    assert found[0].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert z == pytest.approx(z_wanted, rel=1e-5)
    assert name != "kto" or z > 0
    assert_close(own, gradients(model))


@pytest.mark.parametrize("chunks", [False, True])
def test_a_head_that_trains_or_a_model_that_cannot_pack(folder, chunks, monkeypatch) -> None:
    if chunks:
        monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)
    m = method_of("dpo", modules_to_save=["lm_head"])
    data = compared("dpo")
    comparison = Comparison(PreferenceLoss.of(m), data, references("dpo", data))
    model = build(folder, m)
    found, _ = own_loss(comparison, model)
    own = gradients(model)
    assert any("lm_head" in name for name in own)
    model = build(folder, m, packed=False)
    wanted, _ = plain_loss("dpo", m, model, data, comparison.reference)
    wanted.backward()
    assert found[0].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert_close(own, gradients(model))
    apart, _ = own_loss(comparison, model, packed=False)
    torch.testing.assert_close(apart, found, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert_close(gradients(model), own)


def test_measures_are_means_over_pairs() -> None:
    loss = PreferenceLoss.of(method_of("dpo"))
    data = compared("dpo")
    reference = Reference(np.array([-4.0, -4, -8, -2, -1, -5]))
    comparison = Comparison(loss, data, reference)
    log_probs = torch.tensor([-3.0, -5, -9, -1, -1, -6], dtype=torch.float64)
    row = build_row(data, np.arange(3))
    answers = comparison._answers(log_probs, row, np.arange(3))
    assert answers.tokens.tolist() == [3, 9, 6, 2, 1, 5]
    torch.testing.assert_close(
        loss.rewards(answers), 0.3 * torch.tensor([1.0, -1, -1, 1, 0, -1]).double()
    )
    found = measures(np.array([2.0, 3, 0.0, -13, 3, -0.3, -12, 2, np.nan]), 3)
    assert found["accuracy"] == pytest.approx(2 / 3) and "kl" not in found
    assert found["reward_margin"] == pytest.approx(0.1)
    assert found["logp_chosen"] == pytest.approx(-13 / 3)
    only_good = measures(np.array([2.0, 4, 1.0, -13, 0, 0, 0, 3, 8.0]), 4)
    assert "reward_rejected" not in only_good and only_good["kl"] == 2
    assert measures(np.array([2.0, 4, 1.0, -13, 0, 0, 0, 3, 0.0]), 4)["kl"] == 0


def test_extreme_log_probabilities_stay_finite() -> None:
    for name in LOSSES:
        if name == "kto":
            continue
        values = torch.tensor([-2000.0, -1e-9], dtype=torch.float64, requires_grad=True)
        one, reference = torch.ones(1).double(), torch.tensor([-5.0]).double()
        chosen, rejected = (Answers(values[[n]], one, reference) for n in (0, 1))
        loss = PreferenceLoss.of(method_of(name)).of_pairs(chosen, rejected)
        loss.sum().backward()
        assert math.isfinite(loss.item()) and values.grad.isfinite().all(), name
