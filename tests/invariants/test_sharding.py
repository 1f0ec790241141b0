"""Weights that the ranks share (backend.shard) train as whole ones do, on any number of ranks."""

import signal

import pytest
import torch
from support.harness import run, start_ranks
from support.small_runs import make_bases
from support.worlds import assert_same, fresh, losses
from transformers import AutoModelForCausalLM

from intel_ft.files import damage

SHARDED = "backend.shard=true"
FULL = ["method.name=full", "method.r=16"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = make_bases(tmp_path_factory.mktemp("bases")) / "one"
    return [f"model.name_or_path={folder}", "model.dtype=float32"]


def train(folder, *arguments):
    """Train on one rank."""
    result = run("train", "config.yaml", *arguments, cwd=folder)
    assert result.code == 0, result.err


def test_a_whole_model_on_two_ranks_that_are_killed_goes_on_as_one(base, tmp_path):
    settings = {"max_steps": 5, "eval_steps": 2}
    one, many = (fresh(tmp_path / name, **settings) for name in ("one", "many"))
    train(one, *base, *FULL)
    ranks = start_ranks(2, "train", "config.yaml", *base, *FULL, SHARDED, cwd=many)
    ranks[1].wait_until((many / "out/checkpoint-2").exists)
    ranks[1].kill(signal.SIGKILL)
    assert [rank.wait().code in (0, None) for rank in ranks] == [False, False]
    train(many, *base, *FULL, SHARDED, "--resume")
    assert losses(many / "out") == pytest.approx(losses(one / "out"), rel=1e-5)
    whole, shared = (
        AutoModelForCausalLM.from_pretrained(folder / "out/model").state_dict()
        for folder in (one, many)
    )
    for name, weight in whole.items():
        torch.testing.assert_close(shared[name], weight, rtol=0.01, atol=1e-4)
    part = next((many / "out/checkpoint-2/shards/state").iterdir())
    part.write_bytes(part.read_bytes()[:-1] + b"\0")
    assert f"shards/state/{part.name} does not match" in damage(many / "out/checkpoint-2")


def test_an_adapter_on_a_base_that_two_ranks_share(base, tmp_path):
    """With one row for both ranks in each step, and layers that are computed again."""
    settings = {"max_steps": 3, "eval_steps": 2, "global_batch_size": 1}
    options = [*base, "train.activation_checkpointing=true"]
    one, two = (fresh(tmp_path / name, **settings) for name in ("one", "two"))
    train(one, *options)
    ranks = start_ranks(2, "train", "config.yaml", *options, SHARDED, cwd=two)
    assert [rank.wait().code for rank in ranks] == [0, 0]
    assert_same(two / "out", one / "out")
