#!/bin/bash
# Submit: qsub launch/developer-cloud-pbs.sh, on a cluster in Intel's developer cloud that has PBS
# (Torque's spelling of resources; pbs.sh is PBS Professional's).
#PBS -N lora
#PBS -l nodes=2:spr:ppn=2            # `pbsnodes -a` lists what nodes are called there
#PBS -l walltime=01:00:00
#PBS -r y
#PBS -j oe

cd "$PBS_O_WORKDIR" || exit 3
# PBS_NODEFILE names each node `ppn` times: so many ranks it gets.
exec python -m intel_ft launch run.yaml --resume --max-restarts 2 --hostfile "$PBS_NODEFILE"
