"""Measuring how many ranks of how many threads are fastest on this host.

As a program it is one measured rank.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from intel_ft.distributed.placement import places, ranks_per_host
from intel_ft.files import write_json
from intel_ft.host.cpu import cpu_name
from intel_ft.host.openmp import VARIABLE
from intel_ft.host.topology import Topology

GAIN = 1.05  # how much faster more ranks must be, since each has a copy of the base model
_TOKENS, _HIDDEN, _SECONDS = 2048, 2048, 1.0
_RUNS = 3


def tuned_ranks(topology: Topology) -> tuple[int, str] | None:
    """The fastest number of ranks, as measured on such a host, and why; None if never measured."""
    try:
        entry = json.loads(_file().read_text(encoding="utf-8"))[_key(topology)]
        return int(entry["ranks"]), str(entry["reason"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # the last: no home folder
        return None


def measure(topology: Topology) -> list[tuple[int, float]]:
    """The bf16 GEMM rate of the host, in GFLOP/s, for each number of ranks that divides its cores.

    Stores the best one for `tuned_ranks`.
    """
    cores, start = topology.usable, ranks_per_host(topology)[0]
    candidates = [n for n in range(1, cores + 1) if cores % n == 0 and (n <= 16 or n == start)]
    rounds = [{ranks: _rate(topology, ranks) for ranks in candidates} for _ in range(_RUNS)]
    rates = [(ranks, sorted(r[ranks] for r in rounds)[_RUNS // 2]) for ranks in candidates]
    best = rates[0]
    for ranks, rate in rates[1:]:
        if rate > GAIN * best[1]:
            best = (ranks, rate)
    reason = f"measured: {best[1]:.0f} GFLOP/s, against {rates[0][1]:.0f} with one rank"
    path = _file()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        entries = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, entries | {_key(topology): {"ranks": best[0], "reason": reason}})
    return rates


def _rate(topology: Topology, ranks: int) -> float:
    """GFLOP/s of `ranks` processes at the same time, each bound to its cores."""
    start = str(time.time() + 5.0 + 0.2 * ranks)  # by then all have loaded torch
    running = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, start, ",".join(map(str, place.cpus))],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(len(place.cpus)), VARIABLE: "PASSIVE"},
        )
        for place in places(topology, ranks)
    ]
    return sum(float(process.communicate()[0] or 0) for process in running)


def _gemm_rate(start: float, cpus: list[int]) -> float:
    os.sched_setaffinity(0, cpus)
    import torch

    torch.set_num_threads(len(cpus))
    x = torch.randn(_TOKENS, _HIDDEN, dtype=torch.bfloat16)
    weight = torch.randn(_HIDDEN, _HIDDEN, dtype=torch.bfloat16)
    for _ in range(3):
        torch.nn.functional.linear(x, weight)
    time.sleep(max(0.0, start - time.time()))
    count, begun = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begun) < _SECONDS:
        torch.nn.functional.linear(x, weight)
        count += 1
    return 2 * _TOKENS * _HIDDEN * _HIDDEN * count / seconds / 1e9


def _key(topology: Topology) -> str:
    return f"{cpu_name()}, {topology.usable} cores, {len(topology.nodes)} NUMA nodes"


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "intel_ft/layout.json"


if __name__ == "__main__":
    rate = _gemm_rate(float(sys.argv[1]), [int(cpu) for cpu in sys.argv[2].split(",")])
    sys.stdout.write(f"{rate}\n")
