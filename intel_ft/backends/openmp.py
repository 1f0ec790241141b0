"""How OpenMP threads wait for each other, decided before torch loads the runtime; called from
cli.main (which sets it) and training.setup (which tells it). Imports nothing heavy.
"""

import os
from functools import cache

from intel_ft.decisions import Decision

VARIABLE = "OMP_WAIT_POLICY"


@cache
def wait_policy() -> Decision:
    """PASSIVE where the cores are probably shared, else what the runtime does by itself.

    Measured (docs/log.md): beside one other busy process spinning threads lose most of the speed;
    on idle cores passive ones lose 6 % with 2 threads and 25 % with 16.
    """
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    if chosen := os.environ.get(VARIABLE):
        return Decision(VARIABLE, chosen, "set in the environment")
    if cores <= 4:
        return Decision(VARIABLE, "PASSIVE", f"{cores} cores are seldom one program's own")
    if load > cores / 4:
        return Decision(VARIABLE, "PASSIVE", f"the machine is in use already, load {load:.1f}")
    return Decision(VARIABLE, "", "not set: these cores look idle, so threads may spin")
