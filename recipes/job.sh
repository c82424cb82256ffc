#!/usr/bin/env bash
# What a SLURM job of a stage does: `sbatch OPTIONS recipes/job.sh python -m hubert_pretrain.run ... stage=STAGE launch=local`.
# Both launch=slurm and every recipe's slurm.sh use it. One task of srun per process; requeued when it saved and wants to go on.
#
# HUBERT_MAX_REQUEUES  how often it is requeued at most (100)
# HUBERT_SRUN          more options of srun, e.g. "--mpi=pmix"
set -uo pipefail
tasks=${SLURM_NTASKS:-1} # not set where the job did not ask for any number

# Where the processes meet: this script runs on the first node, as rank 0 does.
MASTER_ADDR=${MASTER_ADDR:-$(hostname)}
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export MASTER_ADDR MASTER_PORT
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    export RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=$SLURM_ARRAY_TASK_COUNT
else
    export WORLD_SIZE=$tasks
fi
export PYTHONUNBUFFERED=1
# A process that saved and wants to go on makes this file and ends with 0, so that srun kills the others only after a failure.
export HUBERT_AGAIN="${HUBERT_AGAIN_FOLDER:-$PWD}/.again-$SLURM_JOB_ID"
rm -f "$HUBERT_AGAIN"

options=(--mpi=none --kill-on-bad-exit=1)
[ "$tasks" -gt 1 ] && options+=(--label)
read -r -a more <<<"${HUBERT_SRUN:-}"
srun "${options[@]}" "${more[@]}" "$@" &
step=$!
# A signal that reaches this shell instead of the processes is passed on; wait returns early then.
trap 'kill -USR2 "$step" 2>/dev/null' USR2 TERM
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    code=$?
done

killed_by_usr2=140 # before the process was ready for it
if { [ "$code" -eq 0 ] && [ -e "$HUBERT_AGAIN" ]; } || [ "$code" -eq "$killed_by_usr2" ]; then
    rm -f "$HUBERT_AGAIN"
    code=75
    # A job that was cancelled is no longer RUNNING: it stays cancelled.
    state=$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID" 2>/dev/null)
    if [ "$state" = RUNNING ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${HUBERT_MAX_REQUEUES:-100}" ]; then
        echo "requeued ($((${SLURM_RESTART_COUNT:-0} + 1)) of at most ${HUBERT_MAX_REQUEUES:-100} times)"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
