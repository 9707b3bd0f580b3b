#!/usr/bin/env bash
# Runs a recipe on several nodes under Slurm, from the root of the repository:
#
#   sbatch --nodes 4 recipes/launch/slurm.sh recipes/qwen2vl_7b.py \
#       --data-path FILE --parallel.replicate 4
#
# One task on each node starts one rank for each of its GPUs. Ten minutes before the job's
# time is over all ranks save and end. A job that is requeued, or submitted again, goes on
# from the last checkpoint, since the command is the same.
#SBATCH --job-name=fastslow
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=TERM@600
#SBATCH --output=slurm-%j.log
set -euo pipefail

read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # all names may not fit a pipe
export NODES=$SLURM_JOB_NUM_NODES RUN_ID=$SLURM_JOB_ID
export HEAD=$head:$((20000 + SLURM_JOB_ID % 12000)) # systems give out those from 32768
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
# Since Slurm 22.05 srun does not take over what was asked of sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-96}
srun --kill-on-bad-exit=0 bash recipes/launch/node.sh "$@"
