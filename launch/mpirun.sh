#!/bin/bash
# Run: bash launch/mpirun.sh, from a host that reaches the others over ssh without a password.
# Better: `intel-ft launch run.yaml --hostfile hosts`, which looks at the hosts first, names what is
# wrong, and starts again when a node dies. This is the command that it runs with Intel MPI.
set -euo pipefail
hosts=node1,node2,node3,node4
ranks_per_host=2                 # one a NUMA node is a good start; `intel-ft launch --tune` measures
ranks=8                          # hosts times ranks_per_host; another number ends with exit 3

export I_MPI_PIN=off             # each rank binds itself, by its own host's topology
export I_MPI_HYDRA_BOOTSTRAP=ssh # inside of a Slurm job it would be srun
# mpiexec.hydra and not mpirun, which is a script around it that passes no signal on.
exec mpiexec.hydra -hosts "$hosts" -n "$ranks" -ppn "$ranks_per_host" \
    python -m intel_ft train run.yaml --resume \
    --ranks "$ranks" --master "${hosts%%,*}:29500" --logs runs/lora.logs

# Open MPI: environment goes by name (-x), and it must be told not to bind.
# mpirun --host node1:2,node2:2 --map-by ppr:2:node --bind-to none -np 4 -x PATH -x HF_HOME \
#     --mca oob_tcp_keepalive_time 60 python -m intel_ft train run.yaml --ranks 4 --master node1:29500
