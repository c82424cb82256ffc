#!/usr/bin/env bash
# The demo as SLURM jobs with plain sbatch, on CPUs.
#   bash recipes/demo/slurm.sh [KEY=VALUE ...]
# The same with resources per stage, and without submitting twice: launch=slurm (docs/cluster.md). More about this one: ../submit.sh
recipe=demo
# shellcheck source=recipes/submit.sh
source "$(dirname "${BASH_SOURCE[0]}")/../submit.sh"

submit prepare --cpus-per-task=2
submit it1/cluster prepare --cpus-per-task=2
submit it1/label prepare it1/cluster --cpus-per-task=2
submit it1/pretrain prepare it1/label --cpus-per-task=2
submit it2/cluster prepare it1/pretrain --cpus-per-task=2
submit it2/label prepare it2/cluster --cpus-per-task=2
submit it2/pretrain prepare it2/label --cpus-per-task=2
submit finetune/asr prepare it2/pretrain --cpus-per-task=2
submit finetune/speakers prepare it2/pretrain --cpus-per-task=2
submit export finetune/asr finetune/speakers it2/pretrain --cpus-per-task=4
