"""A reward model from training to its merged folder: every reader gives the same scores."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from support.harness import metrics, run
from support.preference_runs import fresh
from support.small_runs import make_bases
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from intel_ft.config_sections import DataConfig
from intel_ft.data.prepare import prepare


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, with its base next to it."""
    folder = tmp_path_factory.mktemp("reward")
    make_bases(folder / "bases")
    done = fresh(folder / "run", folder / "bases/one", "reward")
    result = run("train", "config.yaml", "train.max_steps=3", cwd=done)
    assert result.code == 0, result.err
    return done


def evaluated(folder, model: str):
    result = run("eval", model, "--data", "eval.jsonl", "--json", cwd=folder)
    assert result.code == 0, result.err
    return json.loads(result.out)


def scores(model, folder):
    """The mean scores of the chosen and of the rejected answers, as Transformers computes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "out/adapter")
    data = DataConfig(train=str(folder / "eval.jsonl"), template="alpaca")
    answers = prepare(data, data.train, tokenizer, answers="pairs").examples.answers
    inputs = (torch.from_numpy(answers[n][0].astype(np.int64)) for n in range(len(answers)))
    with torch.no_grad():
        found = torch.tensor([float(model(input_ids=ids[None]).logits) for ids in inputs])
    return found[::2].mean().item(), found[1::2].mean().item()


def test_peft_and_eval_score_as_the_run_did(trained) -> None:
    last = [line for line in metrics(trained / "out") if "eval_loss" in line][-1]
    rewards = [last[f"eval_reward_{side}"] for side in ("chosen", "rejected")]
    base = trained.parent / "bases/one"
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    model = PeftModel.from_pretrained(model, trained / "out/adapter").eval()
    assert scores(model, trained) == pytest.approx(rewards, abs=1e-5)
    found = evaluated(trained, "out")
    assert found["pairs"] == 6 and found["pair_accuracy"] == last["eval_accuracy"]
    assert found["loss"] == pytest.approx(last["eval_loss"], abs=0.01)  # of bf16 weights


def test_the_merged_folder_is_a_classifier(trained) -> None:
    result = run("merge", "out", "--output", "merged", "--json", cwd=trained)
    assert result.code == 0, result.err
    assert json.loads(result.out)["agreement"]["relative_error"] < 0.02
    model = AutoModelForSequenceClassification.from_pretrained(trained / "merged").eval()
    assert model.config.num_labels == 1 and model.score.weight.dtype == torch.bfloat16
    rewards = evaluated(trained, "merged")
    wanted = [rewards[f"reward_{side}"] for side in ("chosen", "rejected")]
    assert scores(model, trained) == pytest.approx(wanted, abs=0.005)  # its score is in bf16
    tokenizer = AutoTokenizer.from_pretrained(trained / "merged")
    texts = ["def f(): return 1", "x"]
    batch = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits
    alone = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    torch.testing.assert_close(batch, torch.stack(alone), rtol=0.02, atol=0.01)
    again = ("model.name_or_path=merged", "output.directory=again")
    refusal = run("train", "config.yaml", *again, cwd=trained)
    assert (refusal.code, "this is a reward model" in refusal.last_line) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("chat",), "scores answers but does not write them"),
        (("export", "--output", "ir", "--generate", "2"), "--generate is for language models"),
        (("export", "--adapter", "--output", "ir"), "does not support reward models"),
        (("push", "org/model", "--dry-run"), "the card that push writes"),
        (("eval", "--data", "eval.jsonl", "--generate", "2"), "cannot generate them"),
        (("report", "--samples", "2"), "scores answers but does not write them"),
    ],
)
def test_what_needs_a_language_model_is_refused(trained, arguments, words) -> None:
    verb, *rest = arguments
    result = run(verb, "out", *rest, cwd=trained)
    assert (result.code, words in result.last_line) == (2, True), result.err


def test_all_weights_train_into_a_classifier(trained, tmp_path) -> None:
    folder = tmp_path / "full"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("out", "merged"))
    overrides = (
        *("method.student=full", "train.share_prefixes=true"),
        "method.r=16",
        "train.max_steps=2",
        "train.learning_rate=0.001",
    )
    result = run("train", "config.yaml", *overrides, cwd=folder)
    assert result.code == 0, result.err
    model = AutoModelForSequenceClassification.from_pretrained(folder / "out/model")
    assert type(model).__name__ == "LlamaForSequenceClassification"
    last = [line for line in metrics(folder / "out") if "eval_loss" in line][-1]
    assert evaluated(folder, "out")["loss"] == pytest.approx(last["eval_loss"], abs=0.01)
