#!/usr/bin/env bash
# The work of a SLURM job: a stage, by one task of srun per process. Saved work is requeued.
#   sbatch OPTIONS job.sh python -m hubert_pretrain.run ... stage=STAGE launch=local
#
# HUBERT_MAX_REQUEUES    requeues at most (100)
# HUBERT_SRUN            more options of srun, e.g. "--mpi=pmix"
# HUBERT_REQUEUE_FOLDER  folder for the requeue marker (the working directory)
set -uo pipefail
tasks=${SLURM_NTASKS:-1} # not set where the job did not ask for a number

# The processes meet here: this script runs on the first node, as rank 0 does.
MASTER_ADDR=${MASTER_ADDR:-$(hostname)}
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export MASTER_ADDR MASTER_PORT
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    export RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=$SLURM_ARRAY_TASK_COUNT
else
    export WORLD_SIZE=$tasks
fi
export PYTHONUNBUFFERED=1
# A process that saved and has more to do makes this file and ends with 0: srun kills the other
# processes only after a failure.
export HUBERT_REQUEUE_MARKER="${HUBERT_REQUEUE_FOLDER:-$PWD}/.requeue-$SLURM_JOB_ID"
rm -f "$HUBERT_REQUEUE_MARKER"

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
if { [ "$code" -eq 0 ] && [ -e "$HUBERT_REQUEUE_MARKER" ]; } || [ "$code" -eq "$killed_by_usr2" ]; then
    rm -f "$HUBERT_REQUEUE_MARKER"
    code=75
    # A job that was cancelled is no longer RUNNING: it stays cancelled.
    state=$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID" 2>/dev/null)
    if [ "$state" = RUNNING ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${HUBERT_MAX_REQUEUES:-100}" ]; then
        echo "requeued ($((${SLURM_RESTART_COUNT:-0} + 1)) of at most ${HUBERT_MAX_REQUEUES:-100} times)"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
