"""`bench collectives`: its arguments, its report and its table."""

import os
from xml.etree import ElementTree

import pytest

from intel_ft.bench import collectives as module
from intel_ft.bench.collectives import bench_collectives, intel_mpirun, sizes_of
from intel_ft.bench.collectives_table import collectives_table, plotted
from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError


def test_sizes_are_read_sorted_and_bounded():
    assert sizes_of("1M, 4k,64,64") == [64, 4096, 2**20]
    for text in ("", "4K,", "x", "K", "-4K", "0", "63", "1.5M"):
        with pytest.raises(UserError, match="--sizes"):
            sizes_of(text)


@pytest.fixture
def here(monkeypatch):
    """A machine with everything, whose contenders take known times; the order of the runs."""
    order = []
    seconds = {"ccl": iter([1e-3, 9e-3, 2e-3]), "gloo": iter([3e-3, 4e-3, 5e-3])}

    def run(contender, _environment, ranks, hosts, arguments):
        order.append(contender)
        if contender == "mpi4py":
            raise IntelFTError("no such network")
        taken = next(seconds[contender])
        sizes = [int(size) for size in arguments[1].split(",")]
        times = {name: [[taken * s / 1000] * 5 for s in sizes] for name in arguments[0].split(",")}
        return {"ranks": ranks, "seconds": times}

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "intel_mpirun", lambda: {})
    monkeypatch.setattr("intel_ft.distributed.oneccl.why_not_usable", lambda: None)
    monkeypatch.setattr(module, "installed", lambda _: "1")
    return order


def test_contenders_take_turns_and_medians_are_compared(here):
    report = bench_collectives(4, [1000, 2000], ["all-reduce", "all-gather"], None, 3, ["a", "b"])
    assert here == ["ccl", "gloo", "mpi4py", "ccl", "gloo", "ccl", "gloo"]
    ccl, gloo = report["ccl"], report["peers"]["gloo"]
    assert [point["bytes"] for point in ccl["all-reduce"]] == [1000, 2000]
    first = gloo["all-reduce"][0]
    assert (first["seconds"], first["runs"]) == (4e-3, [3e-3, 4e-3, 5e-3])
    assert first["ratio"] == pytest.approx(2)
    assert first["algorithm_gb_per_s"] == pytest.approx(1000 / 4e-3 / 1e9)
    assert first["bus_gb_per_s"] == pytest.approx(1.5 * first["algorithm_gb_per_s"])
    gathered = gloo["all-gather"][0]
    assert gathered["bus_gb_per_s"] == pytest.approx(0.75 * gathered["algorithm_gb_per_s"])
    assert report["peers"]["mpi4py"] == {"error": "no such network"}
    # 2 us a byte that crosses the link 1.5 times
    ring = ccl["fits"]["ring"]
    assert ring["beta_s_per_byte"] == pytest.approx(2e-6 / 1.5) and ring["worst_error"] < 1e-6

    table = collectives_table(report)
    assert table.columns == ("4 ranks", "ccl", "bus GB/s", "gloo", "gloo/ccl")
    assert table.rows[0] == ("all-reduce 1000 B", "2 ms", "0.00075", "4 ms", "2.00")
    assert len(table.rows) == 4
    text = table.markdown()
    assert "mpi4py: no such network" in text and "Hosts a, b" in text
    ElementTree.fromstring(plotted(report))


def test_impossible_requests_are_refused_before_anything_runs(here, monkeypatch):
    def refused(error, match, ranks=2, collectives=("all-reduce",), peers=(), hosts=()):
        with pytest.raises(error, match=match):
            bench_collectives(ranks, [64], list(collectives), list(peers), 1, list(hosts))

    refused(UserError, "--collective scatter", collectives=["scatter"])
    refused(UserError, "--peer nccl", peers=["nccl"])
    refused(UserError, "--ranks 3", ranks=3, hosts=["a", "b"])
    refused(UserError, "--ranks 1", ranks=1)
    monkeypatch.setattr(module, "installed", lambda _: None)
    refused(EnvironmentProblem, "pip install mpi4py", peers=["mpi4py"])
    monkeypatch.setattr("intel_ft.distributed.oneccl.why_not_usable", lambda: "no oneCCL")
    refused(EnvironmentProblem, "no oneCCL")
    assert here == []


def test_mpirun_is_intel_mpis_or_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("I_MPI_ROOT", raising=False)
    with pytest.raises(EnvironmentProblem, match="was not found"):
        intel_mpirun()
    other = tmp_path / "mpirun"
    other.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1.4'\n")
    other.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match="not Intel MPI"):
        intel_mpirun()
    other.write_text("#!/bin/sh\necho 'Intel(R) MPI Library'\n")
    environment = intel_mpirun()
    assert environment["PATH"].startswith(f"{tmp_path}{os.pathsep}")
    assert environment["I_MPI_ROOT"] == str(tmp_path.parent)
