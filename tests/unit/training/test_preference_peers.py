"""Preference losses and gradients against TRL's trainers, on the same weights and pairs."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.model_fixtures import TWO_LAYERS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from intel_ft.batching.row import build_row
from intel_ft.config_method import MethodConfig
from intel_ft.config_sections import ModelConfig
from intel_ft.models.answer_log_probs import answer_log_probs
from intel_ft.models.load import load_for_packing
from intel_ft.models.reward import with_score
from intel_ft.templates.answers import Judged, pairs_of
from intel_ft.templates.examples import Examples
from intel_ft.training.comparison import Comparison, Reference
from intel_ft.training.preference_loss import PreferenceLoss

trl = pytest.importorskip("trl")

WORDS = 61
ANSWERS = [(3, 7), (5, 2), (4, 4)]
"""Words of the chosen and the rejected answer of each pair, before their end."""
CASES = {
    "dpo": ({"loss": "dpo"}, ("trl", "DPO"), {"loss_type": ["sigmoid"]}),
    "ipo": ({"loss": "ipo"}, ("trl", "DPO"), {"loss_type": ["ipo"]}),
    "rpo": (
        {"loss": "dpo", "sft_weight": 0.6},
        ("trl", "DPO"),
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.6]},
    ),
    "cpo": ({"loss": "cpo"}, ("trl.experimental.cpo", "CPO"), {"cpo_alpha": 1.0}),
    "cpo, smoothed": (
        {"loss": "cpo", "sft_weight": 0.0, "label_smoothing": 0.2},
        ("trl.experimental.cpo", "CPO"),
        {"cpo_alpha": 0.0, "label_smoothing": 0.2},
    ),
    "simpo": (
        {"loss": "simpo", "gamma": 0.3},
        ("trl.experimental.cpo", "CPO"),
        {"loss_type": "simpo", "simpo_gamma": 0.3, "cpo_alpha": 0.0},
    ),
    "orpo": ({"loss": "orpo"}, ("trl.experimental.orpo", "ORPO"), {}),
}
BETA = 0.4


def words(*ids: int) -> str:
    return " ".join(f"w{one}" for one in ids)


def pairs() -> list[dict[str, str]]:
    """Prompts of one word: TRL's ORPO takes prompts into its supervised term."""
    random = np.random.default_rng(0)
    rows = []
    for chosen, rejected in ANSWERS:
        prompt, *answers = (words(*random.integers(3, WORDS, n)) for n in (1, chosen, rejected))
        rows.append({"prompt": prompt, "chosen": f" {answers[0]}", "rejected": f" {answers[1]}"})
    return rows


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, WORDS)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", bos_token=None
    )


def examples_of(texts: list[tuple[str, str]]) -> Examples:
    """Our own examples of (prompt, answer)."""
    ids = [[[int(w[1:]) for w in part.split()] for part in text] for text in texts]
    tokens = [np.array([*prompt, *answer, 2], np.int32) for prompt, answer in ids]
    masks = [np.arange(len(p) + len(a) + 1) >= len(p) for p, a in ids]
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    return Examples(np.concatenate(tokens), np.concatenate(masks), offsets)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, and its reference."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(tmp_path_factory.mktemp("model"))
        LlamaForCausalLM(LlamaConfig(**TWO_LAYERS)).save_pretrained(found[-1])
    return found


def plain(folder):
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def own(folder):
    model, _ = load_for_packing(ModelConfig(name_or_path=str(folder)), torch.float32)
    return model.requires_grad_(True)


def reference_of(folder, examples: Examples) -> np.ndarray:
    model = own(folder)
    indices = np.arange(len(examples))
    with torch.no_grad():
        row = build_row(examples, indices)
        return answer_log_probs(model, row, packed=True, dtype=torch.float32).numpy()


def gradients(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model, loss, peer, peer_loss) -> None:
    assert loss == pytest.approx(peer_loss, rel=1e-5)
    found, wanted = gradients(model), gradients(peer)
    assert found.keys() == wanted.keys()
    whole = torch.cat([g.flatten() for g in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * (gradient.norm() + 0.1 * whole), name


def trainer_of(module: str, name: str, folder, model, reference, rows, batch: int, **arguments):
    package = __import__(module, fromlist=["x"])
    config, trainer = (getattr(package, f"{name}{what}") for what in ("Config", "Trainer"))
    made = config(
        output_dir=str(folder / "peer"),
        per_device_train_batch_size=batch,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **arguments,
    )
    models = {"model": model} | ({} if reference is None else {"ref_model": reference})
    return trainer(
        **models, args=made, train_dataset=Dataset.from_list(rows), processing_class=tokenizer()
    )


@pytest.mark.parametrize("name", CASES)
def test_pairs_as_trl_has_them(folders, tmp_path, name) -> None:
    method, (module, kind), arguments = CASES[name]
    rows = pairs()
    answers = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    data = pairs_of(examples_of(answers))
    loss = PreferenceLoss.of(MethodConfig(name="preference", beta=BETA, **method))
    reference = Reference(reference_of(folders[1], data.answers)) if loss.has_reference else None
    model, everything = own(folders[0]), np.arange(len(data))
    sums = Comparison(loss, data, reference).row_sums(
        model, build_row(data, everything), everything, packed=True, dtype=torch.float32
    )
    sums[0].backward()

    peer = plain(folders[0])
    models = plain(folders[1]) if loss.has_reference else None
    trainer = trainer_of(module, kind, tmp_path, peer, models, rows, 1, beta=BETA, **arguments)
    # A pair at a time, because TRL's supervised terms are means over the tokens of a batch.
    total = 0.0
    for batch in trainer.get_train_dataloader():
        found = trainer.compute_loss(peer.train(), batch)
        found.backward()
        total += found.item()
    assert_same(model, sums[0].item(), peer, total)


def test_kto_as_trl_has_it(folders, tmp_path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs()
        for side in ("chosen", "rejected")
    ]
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    peer = plain(folders[0])
    trainer = trainer_of(
        "trl", "KTO", tmp_path, peer, plain(folders[1]), rows, len(rows), beta=BETA, **weights
    )
    (batch,) = trainer.get_train_dataloader()
    wanted = trainer.compute_loss(peer.train(), batch)
    wanted.backward()

    # TRL gives a prompt the answer of its neighbour in the batch.
    texts = [(row["prompt"], row["completion"]) for row in rows]
    turned = [texts[place - 1][1] for place in range(len(texts))]
    others = examples_of(
        [(prompt, other) for (prompt, _), other in zip(texts, turned, strict=True)]
    )
    own_set, good = examples_of(texts), np.array([row["label"] for row in rows])
    data = Judged(**vars(own_set), good=good, others=others)
    method = MethodConfig(name="preference", loss="kto", beta=BETA, **weights)
    reference = Reference(reference_of(folders[1], data), reference_of(folders[1], others))
    comparison = Comparison(PreferenceLoss.of(method), data, reference)
    model, everything = own(folders[0]), np.arange(len(data))
    moved = comparison.divergence_sum(model, [everything], packed=True, dtype=torch.float32)
    z = max(0.0, moved / len(data))
    sums = comparison.row_sums(
        model,
        build_row(data, everything),
        everything,
        packed=True,
        dtype=torch.float32,
        divergence=z,
    )
    sums[0].div(len(data)).backward()
    assert_same(model, sums[0].item() / len(data), peer, wanted.item())


def test_rewards_as_trl_has_them(folders, tmp_path) -> None:
    rows = pairs()
    answers = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    data, everything = pairs_of(examples_of(answers)), np.arange(len(rows))
    model = with_score(own(folders[0]), seed=3).requires_grad_(True)
    comparison = Comparison(PreferenceLoss.of(MethodConfig(name="reward")), data)
    sums = comparison.row_sums(
        model, build_row(data, everything), everything, packed=True, dtype=torch.float32
    )
    sums[0].div(len(rows)).backward()

    peer = LlamaForSequenceClassification(LlamaConfig(**TWO_LAYERS, num_labels=1))
    peer.load_state_dict(model.state_dict())
    trainer = trainer_of("trl", "Reward", tmp_path, peer, None, rows, len(rows))
    (batch,) = trainer.get_train_dataloader()
    wanted = trainer.compute_loss(peer.train(), batch)
    wanted.backward()
    assert_same(model, sums[0].item() / len(rows), peer, wanted.item())
