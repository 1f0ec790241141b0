"""What tests of runs share: threads as they were, and small runs of support.small_runs."""

import functools
from pathlib import Path

import pytest
import torch
from support.model_fixtures import TWO_LAYERS
from support.small_runs import config_in, fill, make_bases
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(autouse=True)
def settled():
    """Threads as they were: a run sets them."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def bases(tmp_path_factory) -> Path:
    """Two models of the same shapes, `one` and `other`; tests only read them."""
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def configure(bases, tmp_path):
    """Builds a small run's config in `tmp_path`, with its data and its base."""
    fill(tmp_path, bases)
    return functools.partial(config_in, tmp_path)


@pytest.fixture(scope="package")
def folder(tmp_path_factory) -> Path:
    """A Llama of two layers with random weights; tests only read it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("two_layers")
    LlamaForCausalLM(LlamaConfig(**TWO_LAYERS)).save_pretrained(path)
    return path
