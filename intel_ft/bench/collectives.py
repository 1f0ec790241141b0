"""`bench collectives`: the `ccl` backend compared with gloo and mpi4py.

Contenders take turns, each run in fresh ranks under Intel MPI's mpirun.
"""

import os
import socket
import statistics
from pathlib import Path
from typing import Any

from intel_ft import subprocess_json
from intel_ft.bench.alpha_beta_model import ALGORITHMS, fit
from intel_ft.bench.turns import run_in_turns
from intel_ft.distributed.launch.commands import find, mpi_flavour
from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError
from intel_ft.plurals import count_of
from intel_ft.versions import installed

CCL = "ccl"
PEERS = ("gloo", "mpi4py")
COLLECTIVES = ("all-reduce", "broadcast", "all-gather")
SIZES = "1K,4K,16K,64K,256K,1M,4M,16M,40M,64M,256M"
_UNITS = {"K": 2**10, "M": 2**20}
_INSTALL = (
    "install Intel MPI with `make ccl` or `pip install impi-rt==2021.18.1`, or load your cluster's "
    "module"
)


def sizes_of(text: str) -> list[int]:
    """Parse comma-separated sizes such as 512,4K,40M into bytes, sorted and unique.

    Raises UserError for anything else, and for sizes below 64 bytes.
    """
    try:
        sizes = sorted({_bytes(word.strip()) for word in text.split(",")})
    except (ValueError, IndexError):
        raise UserError(f"--sizes {text}: expected sizes in bytes, such as 512,4K,40M") from None
    if sizes[0] < 64:
        raise UserError(f"--sizes {text}: every size must be at least 64 bytes, got {sizes[0]}")
    return sizes


def bench_collectives(
    ranks: int,
    sizes: list[int],
    collectives: list[str],
    peers: list[str] | None,
    repeat: int,
    hosts: list[str],
) -> dict[str, Any]:
    """Measure ccl and the peers in turns, `repeat` runs each.

    Returns {ranks, hosts, ccl, peers, machine}. A contender has {collective: points}, and `fits`
    for all-reduce; a peer that failed has {"error": reason}. A point has bytes, seconds (the median
    over the runs), algorithm_gb_per_s, bus_gb_per_s, runs, and for a peer `ratio`: its seconds over
    ccl's. peers: None is gloo, and mpi4py if it is installed. hosts: hosts for mpirun, with the
    same number of ranks on each; an empty list is this host.

    Raises UserError and EnvironmentProblem before anything runs, IntelFTError if ccl fails.
    """
    _require_choices("--collective", collectives, COLLECTIVES)
    _require_choices("--peer", peers or [], PEERS)
    if ranks < 2:
        raise UserError(f"--ranks {ranks}: at least two ranks are needed")
    if hosts and ranks % len(hosts):
        raise UserError(
            f"--ranks {ranks}: must be a multiple of the number of hosts ({len(hosts)})"
        )
    if peers is None:
        peers = [peer for peer in PEERS if peer != "mpi4py" or installed(peer)]
    elif "mpi4py" in peers and installed("mpi4py") is None:
        raise EnvironmentProblem("peer mpi4py: mpi4py is not installed; run `pip install mpi4py`")
    environment = intel_mpirun()
    from intel_ft.distributed import oneccl

    if problem := oneccl.why_not_usable():
        raise EnvironmentProblem(problem)
    arguments = [",".join(collectives), ",".join(map(str, sizes))]
    runs, failed = run_in_turns(
        peers,
        repeat,
        lambda contender: _run(contender, environment, ranks, hosts, arguments),
        own=CCL,
    )
    from intel_ft.bench import machine

    ccl = _summary(runs[CCL], sizes, ranks)
    return {
        "ranks": ranks,
        "hosts": hosts,
        CCL: ccl,
        "peers": {
            peer: {"error": failed[peer]}
            if peer in failed
            else _with_ratios(_summary(runs[peer], sizes, ranks), ccl)
            for peer in peers
        },
        "machine": machine.describe(threads=1),
    }


def intel_mpirun() -> dict[str, str]:
    """Environment variables with which `mpirun` is Intel MPI's.

    The mpirun in this Python's environment comes first, then the one on PATH. Raises
    EnvironmentProblem if that is not Intel MPI's.
    """
    program = find("mpirun")
    if mpi_flavour(program) != "Intel MPI":
        raise EnvironmentProblem(f"{program} is not Intel MPI's mpirun: {_INSTALL}")
    folder = Path(program).parent
    root = os.environ.get("I_MPI_ROOT", str(folder.parent))
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "I_MPI_ROOT": root,
        # Without it mpi4py uses the system's MPI, if there is one.
        "MPI4PY_LIBMPI": os.environ.get("MPI4PY_LIBMPI", f"{root}/lib/libmpi.so.12"),
    }


def _run(
    contender: str, environment: dict[str, str], ranks: int, hosts: list[str], arguments: list[str]
) -> dict[str, Any]:
    """One run of a contender in fresh ranks."""
    placement = ["-hosts", ",".join(hosts), "-ppn", str(ranks // len(hosts))] if hosts else []
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    environment = {
        "OMP_NUM_THREADS": "1",  # as torchrun sets it
        **environment,
        "MASTER_ADDR": hosts[0] if hosts else "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if contender == "gloo":  # it starts its own threads, and torchrun does not bind processes
        environment["I_MPI_PIN"] = "off"
    result = subprocess_json.run_module(
        f"bench {contender}",
        "intel_ft.bench.collectives_worker",
        [contender, *arguments],
        environment,
        launcher=["mpirun", "-n", str(ranks), *placement],
    )
    if result["ranks"] != ranks:
        raise IntelFTError(
            f"bench {contender}: {result['ranks']} of {count_of(ranks, 'rank')} connected"
        )
    return result


def _summary(runs: list[dict[str, Any]], sizes: list[int], ranks: int) -> dict[str, Any]:
    """The points of each collective, and the cost model's fits to all-reduce."""
    summary: dict[str, Any] = {}
    for collective in runs[0]["seconds"]:
        summary[collective] = [
            _point(
                collective,
                size,
                ranks,
                [statistics.median(run["seconds"][collective][index]) for run in runs],
            )
            for index, size in enumerate(sizes)
        ]
    if "all-reduce" in summary and len(sizes) > 1:
        times = [(point["bytes"], point["seconds"]) for point in summary["all-reduce"]]
        summary["fits"] = {name: _fit(times, ranks, name) for name in ALGORITHMS}
    return summary


def _point(collective: str, size: int, ranks: int, runs: list[float]) -> dict[str, Any]:
    """Bus bandwidth is that of each link of a ring, as in nccl-tests (doc/PERFORMANCE.md)."""
    seconds = statistics.median(runs)
    crossed = {
        "all-reduce": 2 * (ranks - 1) / ranks,
        "broadcast": 1.0,
        "all-gather": (ranks - 1) / ranks,
    }[collective]
    return {
        "bytes": size,
        "seconds": seconds,
        "algorithm_gb_per_s": size / seconds / 1e9,
        "bus_gb_per_s": size * crossed / seconds / 1e9,
        "runs": runs,
    }


def _fit(times: list[tuple[int, float]], ranks: int, algorithm: str) -> dict[str, float]:
    fitted = fit(times, ranks, algorithm)
    return {
        "alpha_s": fitted.link.latency,
        "beta_s_per_byte": fitted.link.seconds_per_byte,
        "median_error": fitted.median_error,
        "worst_error": fitted.worst_error,
    }


def _with_ratios(peer: dict[str, Any], ccl: dict[str, Any]) -> dict[str, Any]:
    for collective in COLLECTIVES:
        for point, base in zip(peer.get(collective, ()), ccl.get(collective, ()), strict=True):
            point["ratio"] = point["seconds"] / base["seconds"]
    return peer


def _bytes(word: str) -> int:
    unit = _UNITS.get(word[-1].upper(), 1)
    return int(word if unit == 1 else word[:-1]) * unit


def _require_choices(option: str, names: list[str], choices: tuple[str, ...]) -> None:
    for name in names:
        if name not in choices:
            raise UserError(f"{option} {name}: choose one of {', '.join(choices)}")
