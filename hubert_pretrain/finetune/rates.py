"""Learning rates of the parts of a network: the head, and layers that learn the slower the further
they are below it (layer-wise decay: Howard and Ruder 2018; Clark et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from hubert_pretrain.model.hubert import Hubert

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import FinetuneConfig


@dataclass(frozen=True)
class Rates:
    """Peak rates."""

    encoder: float  # of the last layer
    head: float
    layer_decay: float  # rate of a layer, as a share of that of the layer above

    @staticmethod
    def of_config(config: FinetuneConfig) -> Rates | None:
        """Those of a recipe; None where all parts have one."""
        head = config.head_learning_rate or config.learning_rate
        if head == config.learning_rate and config.layer_decay == 1:
            return None
        return Rates(config.learning_rate, head, config.layer_decay)

    def of(self, model: Hubert, head: nn.Module) -> dict[nn.Parameter, float]:
        """The rate of each parameter: encoder x layer_decay^(N - n) for layer n of N, n = 0 for all
        below the first; a norm after the last layer belongs to it.
        """
        context = model.context_encoder
        depth = len(context.layers)
        rates = dict.fromkeys(model.parameters(), self.encoder * self.layer_decay**depth)
        if context.pre_norm:
            rates |= dict.fromkeys(context.norm.parameters(), self.encoder)
        for number, layer in enumerate(context.layers, start=1):
            share = self.layer_decay ** (depth - number)
            rates |= dict.fromkeys(layer.parameters(), self.encoder * share)
        return rates | dict.fromkeys(head.parameters(), self.head)
