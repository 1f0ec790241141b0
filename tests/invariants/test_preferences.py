"""A run that compares answers is the same on any number of ranks, and after it was killed."""

import shutil
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.harness import metrics, run, start_ranks
from support.preference_runs import fresh
from support.small_runs import make_bases
from support.worlds import losses

_COMPARED = ("loss", "eval_loss", "accuracy", "reward_margin", "logp_chosen", "kl", "eval_accuracy")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_bases(tmp_path_factory.mktemp("base")) / "one"


def compared(folder):
    lines = [{name: line.get(name) for name in _COMPARED} for line in metrics(folder / "out")]
    for line in lines:
        if abs(line["reward_margin"] or 0.0) < 1e-6:  # the first step: rounding decides
            line["accuracy"] = None
    return [[value for value in line.values() if value is not None] for line in lines]


def assert_same(folder, reference, tolerance=1e-5):
    found, expected = compared(folder), compared(reference)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=1e-6)
    files = [f / "out/adapter/adapter_model.safetensors" for f in (folder, reference)]
    weights, wanted = map(load_file, files)
    for name, weight in wanted.items():
        assert np.linalg.norm(weights[name] - weight) <= 1e-4 * np.linalg.norm(weight), name


def one_rank(folder, *arguments):
    result = run("train", "config.yaml", *arguments, cwd=folder)
    assert result.code == 0, result.err
    return result.err


@pytest.fixture(scope="module")
def dpo(base, tmp_path_factory):
    folder = fresh(tmp_path_factory.mktemp("dpo") / "one", base)
    one_rank(folder)
    return folder


def test_two_ranks_killed_go_on_as_four(dpo, base, tmp_path) -> None:
    folder = fresh(tmp_path / "killed", base)
    ranks = start_ranks(2, "train", "config.yaml", cwd=folder)
    ranks[1].wait_until((folder / "out/checkpoint-2").exists)
    ranks[1].kill(signal.SIGKILL)
    assert ranks[1].wait(60).code == -signal.SIGKILL
    ranks[0].wait(60)
    ranks = start_ranks(4, "train", "config.yaml", "--resume", cwd=folder)
    results = [rank.wait(120) for rank in ranks]
    assert [result.code for result in results] == [0] * 4, results
    assert "reference: log-probabilities" not in results[0].err, "they were there already"
    assert_same(folder, dpo)


def test_a_reward_model_killed_on_two_ranks_goes_on_alone(base, tmp_path) -> None:
    one, two = (fresh(tmp_path / name, base, "reward") for name in ("one", "two"))
    one_rank(one)
    ranks = start_ranks(2, "train", "config.yaml", cwd=two)
    ranks[1].wait_until((two / "out/checkpoint-2").exists)
    ranks[1].kill(signal.SIGKILL)
    for rank in ranks:
        rank.wait(60)
    one_rank(two, "--resume")
    assert_same(two, one)
    last = [line for line in metrics(one / "out") if "loss" in line][-1]
    assert last["reward_margin"] > 0 and "logp_chosen" not in last


def test_resumed_it_has_the_same_bytes(dpo, tmp_path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(dpo, folder)
    for name in ("adapter", "checkpoint-4", "checkpoint-6"):
        shutil.rmtree(folder / "out" / name)
    file = folder / "out/reference.safetensors"
    values = load_file(file)
    # As if it had been killed in the middle of the pass: half of the values are not there yet.
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        facts = opened.metadata()
    values["train"][20:] = np.nan
    save_file(values, file, facts)
    assert "reference: log-probabilities of 26 answers" in one_rank(folder, "--resume")
    weights = "out/adapter/adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (dpo / weights).read_bytes()
    assert losses(folder / "out") == losses(dpo / "out")


def test_the_reference_is_the_same_with_each_prompt_computed_once(dpo, base, tmp_path) -> None:
    folder = fresh(tmp_path / "each", base)
    one_rank(folder, "train.share_prefixes=false", "train.max_steps=1")
    found, shared = (load_file(f / "out/reference.safetensors") for f in (folder, dpo))
    for name in ("train", "eval"):
        reached = ~np.isnan(found[name])
        assert reached.sum() >= 10
        assert found[name][reached] == pytest.approx(shared[name][reached], rel=1e-6)


def test_it_learns_to_tell_answers_apart(dpo) -> None:
    lines = metrics(dpo / "out")
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert lines[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert [line["eval_loss"] for line in lines if "eval_loss" in line][-1] < np.log(2)
    last = [line for line in lines if "loss" in line][-1]
    assert last["accuracy"] > 0.5 and last["reward_margin"] > 0


def test_judged_answers_train_all_weights_alike_on_two_ranks(base, tmp_path) -> None:
    one, two = (fresh(tmp_path / n, base, "kto", student="full", r=16) for n in ("one", "two"))
    one_rank(one)
    ranks = start_ranks(2, "train", "config.yaml", cwd=two)
    results = [rank.wait(120) for rank in ranks]
    assert [result.code for result in results] == [0, 0], results
    assert [pytest.approx(values, rel=1e-4, abs=1e-5) for values in compared(one)] == compared(two)
    assert (one / "out/reference.safetensors").is_file()
