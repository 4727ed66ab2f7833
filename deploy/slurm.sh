#!/usr/bin/env bash
# A Slurm job: one run over several machines, one rank a GPU. It goes on by itself: after the time limit,
# a preemption or a lost node it is put into the queue again, and --resume takes it from the last checkpoint.
#   sbatch deploy/slurm.sh                        the d20 of runs/speedrun_4gpu.sh on 2 x 8 GPUs
#   RUN=/shared/runs/d24 sbatch deploy/slurm.sh --depth 24
#   DRY_RUN=1 deploy/slurm.sh                     what would be started; needs no Slurm
# RUN and the data must lie where every machine sees them. NANOCHAT=path of the program.
#SBATCH --job-name=nanochat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

nanochat=${NANOCHAT:-nanochat}
run=${RUN:-runs/out/slurm}
depth=(--depth 20)
[ $# -eq 0 ] || depth=("$@")
if [ -n "${DRY_RUN:-}" ]; then
    SLURM_JOB_NODELIST=${SLURM_JOB_NODELIST:-"$(uname -n)"} SLURM_JOB_ID=${SLURM_JOB_ID:-1}
    show() { printf '%s ' "$@"; echo; }
else
    show() { "$@"; }
fi

# Rank 0 is on the first machine; every job has a port of its own.
first=$SLURM_JOB_NODELIST
! command -v scontrol >/dev/null || first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR=$first MASTER_PORT=$((20000 + SLURM_JOB_ID % 40000))
export NANOCHAT_RANKS_TOKEN=${NANOCHAT_RANKS_TOKEN:-job-$SLURM_JOB_ID}
echo "rank 0 at $MASTER_ADDR:$MASTER_PORT"

# Machines start minutes apart: --rank-wait. USR1 comes three minutes before the end: the run saves and
# exits with 75. 69: a rank was lost. Both go on in another job.
code=0
show srun --kill-on-bad-exit=0 "$nanochat" train base --run "$run" --resume "${depth[@]}" \
    --device cuda --rank-wait 5m --async-save --save-every 250 || code=$?
case $code in
    69 | 75) show scontrol requeue "$SLURM_JOB_ID" ;;
    *) exit "$code" ;;
esac
