"""How many cores Slurm gives this process, where no cpuset says it; called from
distributed.topology.

The variables: sbatch(1) and srun(1). SLURM_CPUS_PER_TASK is not looked at: a step inherits it from
its batch script, whatever it was given itself, and with `srun -c` SLURM_CPUS_ON_NODE says the same.
"""

import os
import platform
import re
from collections.abc import Mapping


def cores(
    there: int, threads_per_core: int, environment: Mapping[str, str] = os.environ
) -> float | None:
    """How many of the `there` cores of this host are for this process and those started beside it;
    None outside of a job, and where the variables make no sense.
    """
    node = environment.get("SLURMD_NODENAME", "")
    if not node or "SLURM_JOB_ID" not in environment:
        return None
    names = ["SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE"]
    if node.partition(".")[0] != platform.node().partition(".")[0]:
        del names[0]  # mpirun brought the variables here from another node of the job
    # Such as 8 or 8(x2); of a list like 8(x2),4 it is not known which one this node is.
    texts = [environment.get(name, "") for name in names]
    found = [re.fullmatch(r"([1-9]\d*)(\(x\d+\))?", text) for text in texts]
    cpus = min((int(match[1]) for match in found if match), default=None)
    # As many CPUs as cores are all of a node that is configured to count cores, not threads.
    if cpus is None or cpus == there:
        return None
    asked = environment.get("SLURM_THREADS_PER_CORE", "")  # a job that has it counts only these
    return max(1.0, cpus / (int(asked) if re.fullmatch("[1-9]", asked) else threads_per_core))
