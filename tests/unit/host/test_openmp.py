"""How threads wait is decided by the machine's size and use, and never over the user's head."""

import multiprocessing
import os
import time

import pytest
from support.hosts import wait

from intel_ft.host import openmp


@pytest.mark.parametrize(
    ("cores", "busy", "environment", "value"),
    [
        (2, 0.0, None, "PASSIVE"),
        (16, 0.1, None, ""),
        (16, 9.0, None, "PASSIVE"),
        (2, 9.0, "ACTIVE", "ACTIVE"),
    ],
)
def test_wait_policy(cores, busy, environment, value, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(openmp, "busy_cores", lambda: busy)
    monkeypatch.delenv(openmp.VARIABLE, raising=False)
    if environment:
        monkeypatch.setenv(openmp.VARIABLE, environment)
    decision = openmp.wait_policy.__wrapped__()
    assert decision.value == value and decision.reason


def _keep_busy(core, seconds):
    os.sched_setaffinity(0, {core})
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_a_busy_core_is_seen_at_once(monkeypatch):
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {core})
    other = multiprocessing.get_context("fork").Process(target=_keep_busy, args=(core, 30))
    other.start()
    try:
        wait(lambda: openmp.busy_cores() > 0.7)
    finally:
        other.kill()
        other.join()


def test_without_times_the_load_average_is_taken(tmp_path, monkeypatch):
    stat = tmp_path / "stat"
    stat.write_text("cpu 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(openmp, "_STAT", stat)
    assert openmp.busy_cores() == pytest.approx(os.getloadavg()[0], abs=1)
