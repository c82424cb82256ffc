"""Intermediate layer supervision: layers before the last one predict the targets too (ILS-SSL,
arXiv:2112.08778, section 3).

It shapes the layers while they train. The checkpoint is as without it: the network, and the head of
its last layer. B utterances, T frames, D width, L layer (1-based).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead, pretraining_head
from hubert_pretrain.model.hubert import HubertOutput, LayerNorm
from hubert_pretrain.pretrain.loss import SupervisedLayer

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import LossConfig


class LayerSupervision(nn.Module):
    """The layers that predict, their norms, heads and weights.

    In a pre-norm network the output of a layer was never normalised, so every intermediate one has
    a norm of its own, as the last layer has the final norm.
    """

    def __init__(
        self,
        config: HubertConfig,
        *,
        layers: Sequence[int] = (),
        weights: Sequence[float] = (),
        make_head: Callable[[], CodebookHead | SoftmaxHead] | None = None,
    ) -> None:
        """
        Args:
            config: of the network.
            layers: L, ascending; the last one is the network's last. Empty: it alone.
            weights: of the layers' losses; empty: 1 each.
            make_head: makes a head of its own for each intermediate layer; without it they share
                that of the last layer.
        """
        super().__init__()
        *self.intermediate, _ = layers or [config.num_hidden_layers]
        *self.weights, self.last_weight = weights or [1.0] * (len(self.intermediate) + 1)
        self.norms = nn.ModuleList(
            LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            if config.do_stable_layer_norm
            else nn.Identity()
            for _ in self.intermediate
        )
        self.heads = nn.ModuleList(make_head() for _ in self.intermediate) if make_head else None

    @staticmethod
    def of(config: HubertConfig, loss: LossConfig, n_clusters: Sequence[int]) -> LayerSupervision:
        """The supervision of a recipe, for codebooks of K_1 ... K_N clusters."""

        make_head = partial(new_head, config, loss, n_clusters)
        return LayerSupervision(
            config,
            layers=loss.supervised_layers,
            weights=loss.layer_weights,
            make_head=make_head if loss.separate_layer_heads else None,
        )

    def forward(
        self, output: HubertOutput, head: CodebookHead | SoftmaxHead
    ) -> list[SupervisedLayer]:
        """The layers that predict, the last one last.

        Args:
            output: of the network, with the hidden states if there are intermediate layers.
            head: of the last layer.
        """
        supervised = []
        for index, layer in enumerate(self.intermediate):
            assert output.hidden_states is not None, "run the network with hidden_states=True"
            state = self.norms[index](output.hidden_states[layer - 1])  # (B, T, D)
            own_head = self.heads[index] if self.heads else head
            supervised.append(SupervisedLayer(own_head, state, self.weights[index]))
        return [*supervised, SupervisedLayer(head, output.last, self.last_weight)]


def new_head(
    config: HubertConfig, loss: LossConfig, n_clusters: Sequence[int]
) -> CodebookHead | SoftmaxHead:
    """A new head, as the recipe describes it (`loss.head`), for codebooks of K_1 ... K_N
    clusters.
    """
    if loss.head == "softmax":
        return pretraining_head(config.hidden_size, n_clusters)
    return pretraining_head(
        config.hidden_size,
        n_clusters,
        config.projection_size,
        temperature=loss.temperature,
        tie_projections=loss.tie_projections,
    )
