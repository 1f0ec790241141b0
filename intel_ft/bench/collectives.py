"""`bench collectives`: the `ccl` backend beside gloo and mpi4py, each run in fresh ranks under
Intel MPI's mpirun, in turns; called from cli.bench.
"""

import logging
import os
import socket
import statistics
from pathlib import Path
from typing import Any

from intel_ft import subprocess_json
from intel_ft.bench.alpha_beta_model import ALGORITHMS, fit
from intel_ft.distributed.launch.commands import find, mpi_flavour
from intel_ft.errors import EnvironmentProblem, IntelFTError, UserError
from intel_ft.versions import installed

logger = logging.getLogger(__name__)

CCL = "ccl"
PEERS = ("gloo", "mpi4py")
COLLECTIVES = ("all-reduce", "broadcast", "all-gather")
SIZES = "1K,4K,16K,64K,256K,1M,4M,16M,40M,64M,256M"
_UNITS = {"K": 2**10, "M": 2**20}
_INSTALL = (
    "install Intel MPI with `make ccl`, or `pip install impi-rt==2021.18.1`, or load your cluster's"
)


def sizes_of(text: str) -> list[int]:
    """Bytes of comma-separated sizes such as 512, 4K or 40M, sorted, each once; UserError."""
    try:
        sizes = sorted({_bytes(word.strip()) for word in text.split(",")})
    except (ValueError, IndexError):
        raise UserError(f"--sizes {text}: write bytes, as 512,4K,40M") from None
    if sizes[0] < 64:
        raise UserError(f"--sizes {text}: {sizes[0]} bytes are too few, take at least 64")
    return sizes


def bench_collectives(
    ranks: int,
    sizes: list[int],
    collectives: list[str],
    peers: list[str] | None,
    repeat: int,
    hosts: list[str],
) -> dict[str, Any]:
    """Measure ccl and the peers, `repeat` runs each in turns: {ranks, hosts, ccl, peers, machine}.

    A side is {collective: points}, and `fits` for all-reduce; a peer that failed {"error": reason}.
    A point has bytes, seconds (the median over its runs), algorithm_gb_per_s, bus_gb_per_s, runs,
    and a peer's `ratio`: its seconds over ccl's. peers None: gloo, and mpi4py where installed.
    hosts: reached by mpirun, equally many ranks on each; none is this host.

    Raises UserError and EnvironmentProblem before anything runs, IntelFTError where ccl fails.
    """
    _require_known("--collective", collectives, COLLECTIVES)
    _require_known("--peer", peers or [], PEERS)
    if ranks < 2 or ranks % max(len(hosts), 1):
        raise UserError(f"--ranks {ranks}: take two or more, equally many on each host")
    if peers is None:
        peers = [peer for peer in PEERS if peer != "mpi4py" or installed(peer)]
    elif "mpi4py" in peers and installed("mpi4py") is None:
        raise EnvironmentProblem("peer mpi4py: not installed: run `pip install mpi4py`")
    environment = intel_mpirun()
    from intel_ft.distributed import oneccl

    if problem := oneccl.why_not_usable():
        raise EnvironmentProblem(problem)
    arguments = [",".join(collectives), ",".join(map(str, sizes))]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in (CCL, *peers)}
    failed: dict[str, str] = {}
    for turn in range(1, repeat + 1):
        for side in [side for side in runs if side not in failed]:
            try:
                runs[side].append(_run(side, environment, ranks, hosts, arguments))
            except IntelFTError as error:
                if side == CCL:
                    raise
                failed[side] = str(error)
                logger.warning("%s: %s", side, error)
                continue
            logger.info("%s %d/%d", side, turn, repeat)
    from intel_ft.bench import machine

    ours = _summary(runs[CCL], sizes, ranks)
    return {
        "ranks": ranks,
        "hosts": hosts,
        CCL: ours,
        "peers": {
            peer: {"error": failed[peer]}
            if peer in failed
            else _against(ours, _summary(runs[peer], sizes, ranks))
            for peer in peers
        },
        "machine": machine.describe(threads=1),
    }


def intel_mpirun() -> dict[str, str]:
    """The environment in which `mpirun` is Intel MPI's: of this Python's environment, else of the
    PATH. Raises EnvironmentProblem.
    """
    program = find("mpirun")
    if mpi_flavour(program) != "Intel MPI":
        raise EnvironmentProblem(f"{program} is not Intel MPI's: {_INSTALL}")
    folder = Path(program).parent
    root = os.environ.get("I_MPI_ROOT", str(folder.parent))
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "I_MPI_ROOT": root,
        # mpi4py would take the system's MPI, where there is one.
        "MPI4PY_LIBMPI": os.environ.get("MPI4PY_LIBMPI", f"{root}/lib/libmpi.so.12"),
    }


def _run(
    side: str, environment: dict[str, str], ranks: int, hosts: list[str], arguments: list[str]
) -> dict[str, Any]:
    """One run of a side in ranks of its own."""
    place = ["-hosts", ",".join(hosts), "-ppn", str(ranks // len(hosts))] if hosts else []
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    environment = {
        "OMP_NUM_THREADS": "1",  # as torchrun has it
        **environment,
        "MASTER_ADDR": hosts[0] if hosts else "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if side == "gloo":  # has threads of its own, and its users' launchers do not bind it
        environment["I_MPI_PIN"] = "off"
    result = subprocess_json.measured(
        side,
        "intel_ft.bench.collectives_worker",
        [side, *arguments],
        environment,
        launcher=["mpirun", "-n", str(ranks), *place],
    )
    if result["ranks"] != ranks:
        raise IntelFTError(f"bench {side}: {result['ranks']} ranks came together, not {ranks}")
    return result


def _summary(runs: list[dict[str, Any]], sizes: list[int], ranks: int) -> dict[str, Any]:
    """The points of each collective, and the cost model's fits to all-reduce."""
    side: dict[str, Any] = {}
    for collective in runs[0]["seconds"]:
        side[collective] = [
            _point(
                collective,
                size,
                ranks,
                [statistics.median(run["seconds"][collective][index]) for run in runs],
            )
            for index, size in enumerate(sizes)
        ]
    if "all-reduce" in side and len(sizes) > 1:
        times = [(point["bytes"], point["seconds"]) for point in side["all-reduce"]]
        side["fits"] = {name: _fit(times, ranks, name) for name in ALGORITHMS}
    return side


def _point(collective: str, size: int, ranks: int, runs: list[float]) -> dict[str, Any]:
    """bus: what crosses each link of a ring, as nccl-tests defines it (doc/PERFORMANCE.md)."""
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
    found = fit(times, ranks, algorithm)
    return {
        "alpha_s": found.link.seconds,
        "beta_s_per_byte": found.link.seconds_per_byte,
        "median_error": found.median_error,
        "worst_error": found.worst_error,
    }


def _against(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    for collective in COLLECTIVES:
        for own, other in zip(ours.get(collective, ()), peer.get(collective, ()), strict=True):
            other["ratio"] = other["seconds"] / own["seconds"]
    return peer


def _bytes(word: str) -> int:
    unit = _UNITS.get(word[-1].upper(), 1)
    return int(word if unit == 1 else word[:-1]) * unit


def _require_known(option: str, given: list[str], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{option} {name}: choose one of {', '.join(known)}")
