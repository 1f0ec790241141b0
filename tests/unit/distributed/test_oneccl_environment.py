"""What oneCCL cannot start with is named, and what it prints does not reach stdout."""

import os
from types import SimpleNamespace

import pytest

from intel_ft.distributed.oneccl import environment


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    """Two ranks of Intel MPI on this host, and nothing of oneCCL's set."""
    for name in environment.chosen_variables():
        monkeypatch.delenv(name)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("PMI_RANK", "0")
    return monkeypatch.setenv


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CCL_WORKER_COUNT", "0"),
        ("CCL_WORKER_COUNT", "many"),
        ("CCL_WORKER_AFFINITY", "bad"),
        ("CCL_WORKER_AFFINITY", "9999"),  # one for two ranks
        ("CCL_LOG_LEVEL", "bogus"),
    ],
)
def test_a_variable_that_oneccl_cannot_read_is_named(name, value, variables):
    variables(name, value)
    assert environment.why_wrong().startswith(f"{name}={value} ")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"CCL_WORKER_COUNT": "2", "CCL_WORKER_AFFINITY": "0-1,4-5"},
        {"CCL_WORKER_AFFINITY": "auto", "CCL_LOG_LEVEL": "WARN"},
    ],
)
def test_variables_that_it_reads(values, variables):
    for name, value in values.items():
        variables(name, value)
    assert environment.why_wrong() is None


@pytest.mark.parametrize(
    ("mib", "ranks", "option"),
    [(1, 2, "--shm-size=64m"), (64, 6, None), (64, 2, None), (64, 8, "--shm-size=128m")],
)
def test_shared_memory_that_is_too_small(mib, ranks, option, variables, monkeypatch):
    blocks = SimpleNamespace(f_frsize=4096, f_blocks=mib * 256)
    monkeypatch.setattr(os, "statvfs", lambda path: blocks)
    variables("LOCAL_WORLD_SIZE", str(ranks))
    problem = environment.why_wrong()
    assert (problem is None) == (option is None)
    assert problem is None or (f"/dev/shm has {mib} MiB" in problem and option in problem)
    monkeypatch.delenv("PMI_RANK")  # without MPI oneCCL uses TCP
    assert environment.why_wrong() is None


def test_an_error_of_oneccl_names_the_variables_that_are_set(variables):
    variables("FI_PROVIDER", "bogus")
    with (
        pytest.raises(RuntimeError, match=r"error \(11\); .*FI_PROVIDER=bogus"),
        environment.errors_name(environment.chosen_variables()),
    ):
        raise RuntimeError("oneCCL: CommInitRank failed: unknown error (11)")


def test_what_a_library_prints_goes_to_stderr(capfd):
    with environment.lines_to_stderr():
        os.write(1, b"7 |CCL_WARN| value of CCL_LOG_LEVEL changed to be error\nother\n")
    os.write(1, b"result\n")
    assert capfd.readouterr() == ("result\n", "other\n")
