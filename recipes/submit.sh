#!/usr/bin/env bash
# For the slurm.sh of a recipe, which sets `recipe`, sources this and calls `submit STAGE [STAGE_IT_READS ...] [SBATCH OPTIONS]`.
# Where to run: sbatch's own variables (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, SBATCH_TIMELIMIT). PYTHON: the interpreter on the
# nodes. LOGS: the folder of the logs. A stage that is done ends at once, so running it all again resumes.
set -euo pipefail
: "${recipe:?is set by slurm.sh}"
recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
words=("$@")
logs=${LOGS:-slurm-logs/$recipe}
declare -A job
mkdir -p "$logs"

submit() {
    local stage=$1 after="" dependency=()
    shift
    while [ $# -gt 0 ] && [[ $1 != --* ]]; do
        after+=":${job[$1]}"
        shift
    done
    [ -n "$after" ] && dependency=("--dependency=afterok$after" --kill-on-invalid-dep=yes)
    job[$stage]=$(sbatch --parsable --requeue --signal=USR2@300 --open-mode=append --job-name="$recipe:$stage" \
        --output="$logs/${stage//\//-}-%j.out" "${dependency[@]}" "$@" \
        "$recipes/job.sh" "${PYTHON:-python}" -m hubert_pretrain.run "+recipe=$recipe" "${words[@]}" "stage=$stage" launch=local)
    echo "$stage: job ${job[$stage]}"
}
