"""Errors of a measurement in a process of its own, raised here as what they were there."""

import subprocess
from types import SimpleNamespace

import pytest

from intel_ft import subprocess_json
from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError


@pytest.mark.parametrize(
    ("last_line", "error", "text"),
    [
        (
            "ModuleNotFoundError: No module named 'trl'",
            EnvironmentProblem,
            "plan: the Python package trl is not installed: run pip install trl",
        ),
        ("ImportError: cannot import name 'x' from 'y'", EnvironmentProblem, "plan: a Python pack"),
        (
            "intel_ft.errors.MissingPackage: install bitsandbytes",
            EnvironmentProblem,
            "plan: install bitsandbytes",
        ),
        ("intel_ft.errors.EnvironmentProblem: no mpirun", EnvironmentProblem, "plan: no mpirun"),
        ("intel_ft.errors.UserError: no such file", UserError, "plan: no such file"),
        ("intel_ft.errors.IntelFTError: the disk", IntelFTError, "plan: intel_ft.errors.IntelFTE"),
        ("ModuleNotFoundError: No module named 'intel_ft.gone'", IntelFTError, "plan: ModuleNotF"),
        ("KeyError: 'workload'", IntelFTError, "plan: KeyError: 'workload'"),
    ],
)
def test_the_exit_code_is_that_of_the_cause(last_line, error, text, monkeypatch):
    ended = SimpleNamespace(returncode=1, stdout="", stderr=f"Traceback\n{last_line}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(IntelFTError) as raised:
        subprocess_json.run_module("plan", "module", [], {})
    assert raised.value.exit_code == error.exit_code
    assert str(raised.value).startswith(text)
