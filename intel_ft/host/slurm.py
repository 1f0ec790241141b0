"""How many cores Slurm allocated to this process, where no cpuset limits it.

The variables: sbatch(1) and srun(1). SLURM_CPUS_PER_TASK is ignored: a step inherits it from its
batch script whatever its own value, and with `srun -c` SLURM_CPUS_ON_NODE has the same number.
"""

import os
import platform
import re
from collections.abc import Mapping


def cores(
    total: int, threads_per_core: int, environment: Mapping[str, str] = os.environ
) -> float | None:
    """How many of this host's `total` cores the ranks of the job on this host may use.

    None outside a job, and where the variables are invalid.
    """
    node = environment.get("SLURMD_NODENAME", "")
    if not node or "SLURM_JOB_ID" not in environment:
        return None
    names = ["SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE"]
    if node.partition(".")[0] != platform.node().partition(".")[0]:
        del names[0]  # mpirun copied the variables from another node of the job
    # Such as 8 or 8(x2); a list such as 8(x2),4 does not say which entry is this node's.
    texts = [environment.get(name, "") for name in names]
    matches = [re.fullmatch(r"([1-9]\d*)(\(x\d+\))?", text) for text in texts]
    cpus = min((int(match[1]) for match in matches if match), default=None)
    # As many CPUs as cores: the whole of a node that is configured to count cores, not threads.
    if cpus is None or cpus == total:
        return None
    per_core = environment.get("SLURM_THREADS_PER_CORE", "")  # where set, only these count
    return max(1.0, cpus / (int(per_core) if re.fullmatch("[1-9]", per_core) else threads_per_core))
