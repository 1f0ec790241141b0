"""How OpenMP threads wait for each other, decided before torch loads the OpenMP runtime.

Imports nothing heavy.
"""

import os
import time
from functools import cache
from pathlib import Path

from intel_ft.decisions import Decision
from intel_ft.plurals import count_of

VARIABLE = "OMP_WAIT_POLICY"

_STAT = Path("/proc/stat")
_SAMPLE_SECONDS = 0.1
_IDLE = slice(3, 5)  # of a CPU's times, proc(5): idle, and waiting for a disk
_ALL = slice(0, 8)  # without guest times, which user and nice time include


@cache
def wait_policy() -> Decision:
    """PASSIVE where other programs probably share the cores, else the runtime's default.

    Measured (docs/log.md): alongside one other busy process spinning threads lose most of the
    speed; on idle cores passive threads lose 6 % with 2 threads and 25 % with 16.
    """
    cores = len(os.sched_getaffinity(0))
    if chosen := os.environ.get(VARIABLE):
        return Decision(VARIABLE, chosen, "set in the environment")
    if cores <= 4:
        return Decision(
            VARIABLE, "PASSIVE", f"other programs usually share {count_of(cores, 'core')}"
        )
    if (busy := busy_cores()) > cores / 4:
        return Decision(VARIABLE, "PASSIVE", f"{busy:.1f} of these {cores} cores are already busy")
    return Decision(VARIABLE, "", "not set: these cores are idle, so threads may spin")


def busy_cores() -> float:
    """How many of the cores that this process may use are busy, sampled over a tenth of a second.

    Not the load average, which stays high for minutes after a run. It is the fallback where
    /proc/stat has no times, as in some containers.
    """
    before = _times()
    time.sleep(_SAMPLE_SECONDS)
    spent = [
        [after - start for start, after in zip(first, second, strict=True)]
        for first, second in zip(before, _times(), strict=True)
    ]
    if not any(map(sum, spent)):
        return os.getloadavg()[0]
    return sum(1 - sum(part[_IDLE]) / sum(part) for part in spent if sum(part))


def _times() -> list[list[int]]:
    """Ticks that each core of this process has spent, by kind."""
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = (line.split() for line in _STAT.read_text(encoding="ascii").splitlines())
    return [[int(word) for word in words[1:]][_ALL] for words in lines if words[0] in usable]
