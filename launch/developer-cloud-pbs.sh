#!/bin/bash
# Submit: qsub launch/developer-cloud-pbs.sh, on a cluster with PBS in Intel's developer cloud.
# (Resources are written as in Torque; pbs.sh is for PBS Professional.)
#PBS -N lora
#PBS -l nodes=2:spr:ppn=2            # `pbsnodes -a` lists the properties of nodes
#PBS -l walltime=01:00:00
#PBS -r y
#PBS -j oe

cd "$PBS_O_WORKDIR" || exit 3
# PBS does not pass your PATH on: replace `python` by the path of the one in your environment.
# PBS_NODEFILE lists each node `ppn` times, once per rank.
exec python -m intel_ft launch run.yaml --resume --max-restarts 2 --hostfile "$PBS_NODEFILE"
