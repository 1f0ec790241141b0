"""The choice of the collective between CPUs: by config, launcher, and what is installed."""

import pytest

from intel_ft.config_sections import BackendConfig
from intel_ft.distributed.collective import Installed, choose_collective
from intel_ft.errors import EnvironmentProblem
from intel_ft.host.launcher_env import INTEL_MPI, OPEN_MPI, TORCHRUN


def chosen(collective, launcher, *, mpi=False, why_no_oneccl=None):
    return choose_collective(
        BackendConfig(collective=collective),
        compute="cpu",
        launcher=launcher,
        installed=Installed(nccl=False, mpi=mpi, why_no_oneccl=lambda: why_no_oneccl),
    )


@pytest.mark.parametrize(
    ("collective", "launcher", "options", "value", "reason"),
    [
        ("auto", INTEL_MPI, {}, "ccl", "Intel MPI"),
        ("auto", OPEN_MPI, {}, "gloo", "slower than gloo"),
        ("auto", TORCHRUN, {}, "gloo", "slower than gloo"),
        ("auto", INTEL_MPI, {"why_no_oneccl": "no library"}, "gloo", "no library"),
        ("auto", INTEL_MPI, {"mpi": True}, "mpi", "built with MPI"),
        ("mpi", TORCHRUN, {"mpi": True}, "mpi", "built with MPI"),
        ("ccl", TORCHRUN, {}, "ccl", "set in the config"),
        ("gloo", INTEL_MPI, {}, "gloo", "set in the config"),
    ],
)
def test_choice_between_cpus(collective, launcher, options, value, reason):
    decision = chosen(collective, launcher, **options)
    assert (decision.name, decision.value) == ("backend.collective", value)
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("collective", "why_no_oneccl", "part"),
    [("mpi", None, "without MPI"), ("ccl", "no library", "no library"), ("nccl", None, "GPUs")],
)
def test_a_collective_that_is_not_installed(collective, why_no_oneccl, part):
    with pytest.raises(EnvironmentProblem, match=part) as error:
        chosen(collective, INTEL_MPI, why_no_oneccl=why_no_oneccl)
    assert f"backend.collective={collective}" in str(error.value)


def test_oneccl_is_loaded_only_where_the_choice_depends_on_it():
    def load():
        raise AssertionError("loaded")

    installed = Installed(nccl=True, mpi=True, why_no_oneccl=load)
    for collective, compute in (("gloo", "cpu"), ("mpi", "cpu"), ("auto", "cpu"), ("auto", "cuda")):
        choose_collective(
            BackendConfig(collective=collective),
            compute=compute,
            launcher=INTEL_MPI,
            installed=installed,
        )
