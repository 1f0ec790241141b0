"""The settings that OpenVINO GenAI gets for a `Sampling`; answers are in tests/unit/inference."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from intel_ft.runtimes.language_model import Sampling
from intel_ft.runtimes.openvino_lm import OpenVINOLM

pytestmark = pytest.mark.skipif(
    find_spec("openvino_genai") is None, reason="needs the openvino extra"
)


def config(sampling):
    model = SimpleNamespace(context_window=64, _stops=frozenset({2}))
    return OpenVINOLM._config(model, [1, 5, 7], sampling, 3)


def test_temperature_0_is_greedy():
    greedy = config(Sampling(max_new_tokens=8))
    assert (greedy.do_sample, greedy.max_new_tokens, greedy.stop_token_ids) == (False, 8, {2})


def test_a_temperature_samples_with_its_seed():
    sampled = config(Sampling(temperature=0.5, top_p=0.9, top_k=4, max_new_tokens=8))
    assert sampled.do_sample
    assert (sampled.temperature, sampled.top_p) == pytest.approx((0.5, 0.9))
    assert (sampled.top_k, sampled.rng_seed) == (4, 3)


def test_an_answer_ends_at_the_context_window():
    assert config(Sampling(max_new_tokens=1000)).max_new_tokens == 61
