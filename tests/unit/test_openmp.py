"""How threads wait is decided by the machine's size and load, and never over the user's head."""

import os

import pytest

from intel_ft.backends import openmp


@pytest.mark.parametrize(
    ("cores", "load", "environment", "value"),
    [
        (2, 0.0, None, "PASSIVE"),
        (16, 0.1, None, ""),
        (16, 9.0, None, "PASSIVE"),
        (2, 9.0, "ACTIVE", "ACTIVE"),
    ],
)
def test_wait_policy(cores, load, environment, value, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.delenv(openmp.VARIABLE, raising=False)
    if environment:
        monkeypatch.setenv(openmp.VARIABLE, environment)
    decision = openmp.wait_policy.__wrapped__()
    assert decision.value == value and decision.reason
