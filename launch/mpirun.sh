#!/bin/bash
# Run: bash launch/mpirun.sh, from a host that can connect to the others over ssh without a password.
# Better: `intel-ft launch run.yaml --hostfile hosts`, which runs this command with Intel MPI. It
# also checks the hosts first and, with --max-restarts, restarts the run when a node fails.
set -euo pipefail
hosts=node1,node2,node3,node4
ranks_per_host=2                 # start with one per NUMA node; `intel-ft launch --tune` measures
ranks=8                          # hosts times ranks_per_host; any other number ends with exit code 3

export I_MPI_PIN=off             # each rank binds itself, by the topology of its host
export I_MPI_HYDRA_BOOTSTRAP=ssh # in a Slurm job the default is srun
# mpiexec.hydra and not mpirun, which is a script around it that does not forward signals.
exec mpiexec.hydra -hosts "$hosts" -n "$ranks" -ppn "$ranks_per_host" \
    python -m intel_ft train run.yaml --resume \
    --ranks "$ranks" --master "${hosts%%,*}:29500" --logs runs/lora.logs

# Open MPI: variables are forwarded by name (-x), and its own binding must be turned off.
# mpirun --host node1:2,node2:2 --map-by ppr:2:node --bind-to none -np 4 -x PATH -x HF_HOME \
#     --mca oob_tcp_keepalive_time 60 python -m intel_ft train run.yaml --ranks 4 --master node1:29500
