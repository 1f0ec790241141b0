"""`intel-ft bench collectives` as a user runs it: real ranks, right results, one table."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from intel_ft.bench.collectives_worker import Communicator, measure
from intel_ft.distributed.oneccl import why_not_usable

SCRIPT = Path(sys.executable).parent / "intel-ft"
COLLECTIVES = ["all-reduce", "broadcast", "all-gather"]

needs_ccl = pytest.mark.skipif(why_not_usable() is not None, reason=str(why_not_usable()))


def bench(*arguments):
    command = [SCRIPT, "bench", "collectives", "--repeat", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_ccl
def test_contenders_are_measured_in_the_same_way(tmp_path):
    plot = tmp_path / "plot.svg"
    done = bench("--sizes", "1K,1M", "--plot", plot, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"ranks", "hosts", "ccl", "peers", "machine"}
    peers = {"gloo", "mpi4py"} if find_spec("mpi4py") else {"gloo"}
    assert set(report["peers"]) == peers
    for contender in (report["ccl"], *report["peers"].values()):
        assert set(contender) == {*COLLECTIVES, "fits"}
        for name in COLLECTIVES:
            small, large = contender[name]
            assert (small["bytes"], large["bytes"]) == (2**10, 2**20)
            assert small["seconds"] > 0 < large["bus_gb_per_s"]
    ours, gloo = report["ccl"]["all-reduce"][0], report["peers"]["gloo"]["all-reduce"][0]
    assert gloo["ratio"] == pytest.approx(gloo["seconds"] / ours["seconds"])
    assert plot.read_text().count("<polyline") == 1 + len(peers)


@needs_ccl
def test_a_failed_contender_is_reported():
    done = bench("--sizes", "1K", "--hosts", "no-such-host,nor-this")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: bench ccl: ")


def test_a_mistake_is_one_line():
    done = bench("--sizes", "1Q")
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.strip().splitlines()) == 1


def alone(**calls):
    """A world of one rank whose collectives do what they must, but for `calls`."""
    right = {
        "all_reduce": lambda whole: None,
        "broadcast": lambda whole: None,
        "all_gather": np.copyto,
    }
    return Communicator(0, 1, lambda array: array, **(right | calls))


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_a_wrong_result_is_no_measurement(collective):
    assert len(measure(alone(), collective, 4096)) == 5

    def wrong(whole, *_):
        whole[7] += 1

    broken = alone(**{collective.replace("-", "_"): wrong})
    with pytest.raises(RuntimeError, match=f"{collective} of 4096 bytes"):
        measure(broken, collective, 4096)
