#!/bin/bash
# Submit: mkdir -p runs && sbatch launch/developer-cloud-slurm.sh, on a cluster with Slurm in
# Intel's developer cloud. (Slurm does not create the folder of its log.)
# A small job: two Sapphire Rapids nodes, one hour. Unlike slurm.sh, it does not requeue itself at
# the time limit.
#SBATCH --job-name=lora
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --constraint=spr             # `sinfo -o "%N %f"` lists the features of nodes
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --output=runs/lora.logs-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300            # to the ranks, which then save and stop

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
srun --mpi=none --cpu-bind=none --kill-on-bad-exit=1 \
    python -m intel_ft train run.yaml --resume --ranks 4 --logs runs/lora.logs
