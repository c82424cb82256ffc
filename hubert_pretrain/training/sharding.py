"""Processes that share one copy of a network's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hubert_pretrain.distributed import check_groups
from hubert_pretrain.fields import AUTO

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import TrainerConfig

SHARDED = ("fsdp", "hsdp")
"""Strategies under which processes share it."""


def shard_size(config: TrainerConfig) -> int:
    """Number of processes that share one copy of the weights: under fsdp all, under hsdp
    `trainer.shard_size`, or those of a node; 1 where each has its own. Raises ConfigError as
    `check_groups` does.
    """
    if config.strategy not in SHARDED:
        return 1
    if config.strategy == "fsdp":
        return config.devices * config.num_nodes
    size = config.devices if config.shard_size == AUTO else int(config.shard_size)
    check_groups(size, config.devices, config.num_nodes, key="trainer.shard_size")
    return size
