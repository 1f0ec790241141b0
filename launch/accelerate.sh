#!/bin/bash
# Run: bash launch/accelerate.sh, with a file `hosts` that has one host per line.
# Without --mpirun_hostfile Accelerate starts ONE process on a CPU, whatever --num_processes is;
# --ranks makes that an error instead of a slow run.
set -euo pipefail
export I_MPI_PIN=off             # each rank binds itself to its cores
exec accelerate launch --cpu --num_machines 2 --num_processes 4 --mpirun_hostfile hosts \
    --main_process_ip "$(head -n 1 hosts)" --main_process_port 29500 \
    --mixed_precision no --dynamo_backend no -m intel_ft train run.yaml --resume \
    --ranks 4 --master "$(head -n 1 hosts):29500" --logs runs/lora.logs
