#!/usr/bin/env bash
# base_ls100 as SLURM jobs with plain sbatch: one GPU.
#   bash recipes/base_ls100/slurm.sh data.root=/corpora/LibriSpeech [KEY=VALUE ...]
# The same with resources per stage, and without submitting twice: launch=slurm (docs/cluster.md). More about this one: ../submit.sh
recipe=base_ls100
# shellcheck source=recipes/submit.sh
source "$(dirname "${BASH_SOURCE[0]}")/../submit.sh"

submit prepare --cpus-per-task=16
submit it1/cluster prepare --gpus-per-node=1 --cpus-per-task=10
submit it1/label prepare it1/cluster --gpus-per-node=1 --cpus-per-task=10
submit it1/pretrain prepare it1/label --gpus-per-node=1 --cpus-per-task=10
submit it2/cluster prepare it1/pretrain --gpus-per-node=1 --cpus-per-task=10
submit it2/label prepare it2/cluster --gpus-per-node=1 --cpus-per-task=10
submit it2/pretrain prepare it2/label --gpus-per-node=1 --cpus-per-task=10
submit finetune/asr prepare it2/pretrain --gpus-per-node=1 --cpus-per-task=10
submit export finetune/asr it2/pretrain --cpus-per-task=4
