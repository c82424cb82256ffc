#!/usr/bin/env bash
# fast_base_ls960 as SLURM jobs with plain sbatch: the paper's 32 GPUs as 4 nodes of 8, then 8 for fine-tuning.
#   bash recipes/fast_base_ls960/slurm.sh data.root=/corpora/LibriSpeech [KEY=VALUE ...]
# The same with resources per stage, and without submitting twice: launch=slurm (docs/cluster.md). More about this one: ../submit.sh
recipe=fast_base_ls960
# shellcheck source=recipes/submit.sh
source "$(dirname "${BASH_SOURCE[0]}")/../submit.sh"

submit prepare --cpus-per-task=16
submit it1/cluster prepare --gpus-per-node=1 --cpus-per-task=16
submit it1/label prepare it1/cluster --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8
submit it1/pretrain prepare it1/label --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=10
submit it2/cluster prepare it1/pretrain --gpus-per-node=1 --cpus-per-task=16
submit it2/label prepare it2/cluster --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8
submit it2/pretrain prepare it2/label --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=10
submit finetune/asr prepare it2/pretrain --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=10
submit export finetune/asr it2/pretrain --cpus-per-task=4
