"""The cost model of an all-reduce: its formulas, its fit to synthetic times, its predictions."""

import random

import pytest

from intel_ft.bench.alpha_beta_model import (
    ALGORITHMS,
    Link,
    all_reduce_seconds,
    fit,
    predicted_efficiency,
    prediction_errors,
)

SIZES = [4**n for n in range(5, 15)]


def test_the_formulas_against_worked_examples():
    link = Link(latency=1.0, seconds_per_byte=0.01)
    assert all_reduce_seconds(link, 4, 400, "ring") == pytest.approx(6 * 1 + 6 * 100 * 0.01)
    # Halving sends 200 and 100 bytes, doubling 100 and 200.
    assert all_reduce_seconds(link, 4, 400, "halving") == pytest.approx(4 * 1 + 600 * 0.01)
    assert all_reduce_seconds(link, 4, 400, "doubling") == pytest.approx(2 * 1 + 2 * 400 * 0.01)
    assert all_reduce_seconds(link, 5, 400, "doubling") == pytest.approx(3 * 1 + 3 * 400 * 0.01)
    assert all_reduce_seconds(link, 4, 1) == all_reduce_seconds(link, 4, 1, "doubling")
    assert all_reduce_seconds(link, 4, 10**6) == all_reduce_seconds(link, 4, 10**6, "halving")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_fit_recovers_the_link_and_predicts_another_number_of_ranks(algorithm):
    link = Link(50e-6, 8 / 10e9)
    noise = random.Random(0)
    times = [
        (size, all_reduce_seconds(link, 2, size, algorithm) * noise.uniform(0.95, 1.05))
        for size in SIZES
    ]
    fitted = fit(times, 2, algorithm)
    assert fitted.link.latency == pytest.approx(link.latency, rel=0.04)
    assert fitted.link.seconds_per_byte == pytest.approx(link.seconds_per_byte, rel=0.04)
    assert 0 < fitted.median_error <= fitted.worst_error < 0.1
    more = [(size, all_reduce_seconds(link, 8, size, algorithm)) for size in SIZES]
    assert max(prediction_errors(fitted.link, more, 8, algorithm)) < 0.05


def test_a_fit_never_has_a_negative_cost():
    steeper = fit([(1000, 1e-6), (2000, 4e-6)], 2, "ring")
    assert steeper.link.latency == 0 < steeper.link.seconds_per_byte
    falling = fit([(1000, 4e-6), (2000, 1e-6)], 2, "ring")
    assert falling.link.seconds_per_byte == 0 < falling.link.latency
    with pytest.raises(ValueError, match="two sizes"):
        fit([(1000, 1e-6), (1000, 2e-6)], 2, "ring")


def test_efficiency_falls_with_nodes_and_rises_with_the_network():
    # 100 MB around a ring of very many at 10 Gbit/s take 0.16 s, two messages a node 0.1 ms each.
    link = Link.of(10, 1e-7)
    assert predicted_efficiency(0.16, 10**8, 10**4, link) == pytest.approx(0.5, abs=0.01)
    assert predicted_efficiency(1.0, 10**8, 1, link) == 1
    shares = [predicted_efficiency(1.0, 10**8, nodes, link) for nodes in (2, 16, 64, 256)]
    assert shares == sorted(shares, reverse=True)
    half = Link.of(20, 1e-7, share=0.5)
    assert half == link
    assert predicted_efficiency(1.0, 10**8, 64, Link.of(100, 1e-7)) > shares[2]
