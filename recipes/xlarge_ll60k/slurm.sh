#!/usr/bin/env bash
# xlarge_ll60k as SLURM jobs with plain sbatch: the paper's 256 GPUs as 32 nodes of 8.
#   bash recipes/xlarge_ll60k/slurm.sh data.root=/corpora/librilight [KEY=VALUE ...]
# The same with resources per stage, and without submitting twice: launch=slurm (docs/cluster.md). More about this one: ../submit.sh
recipe=xlarge_ll60k
# shellcheck source=recipes/submit.sh
source "$(dirname "${BASH_SOURCE[0]}")/../submit.sh"

submit prepare --cpus-per-task=32
submit it1/cluster prepare --gpus-per-node=1 --cpus-per-task=16
submit it1/label prepare it1/cluster --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8
submit it1/pretrain prepare it1/label --nodes=32 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=10
submit export it1/pretrain --cpus-per-task=4
