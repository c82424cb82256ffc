"""Which layers predict the targets: the last one, and where a recipe says so layers before it
(ILS-SSL, arXiv:2112.08778, section 3).

Intermediate supervision shapes the layers while they train. The checkpoint is as without it: the
network, and the head of its last layer. B utterances, T frames, D width, L layer (1-based).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.model.hubert import HubertOutput, LayerNorm
from hubert_pretrain.pretrain.loss import SupervisedLayer


class LayerSupervision(nn.Module):
    """What predicts the targets, and what each prediction weighs.

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
            config: of the network. layers: L, ascending; the last one is the network's last. None
            given: it alone. weights: of the layers' losses; none given: 1 each. make_head: gives
            each intermediate layer a head of its own; without it they share that of the last layer.
        """
        super().__init__()
        *self.intermediate, _ = layers or [config.num_hidden_layers]
        *self.weights, self.last_weight = weights or [1.0] * (len(self.intermediate) + 1)
        width = config.hidden_size
        eps = config.layer_norm_eps
        self.norms = nn.ModuleList(
            LayerNorm(width, eps=eps) if config.do_stable_layer_norm else nn.Identity()
            for _ in self.intermediate
        )
        self.heads = nn.ModuleList(make_head() for _ in self.intermediate) if make_head else None

    def forward(
        self, output: HubertOutput, head: CodebookHead | SoftmaxHead
    ) -> list[SupervisedLayer]:
        """The network's output, with the hidden states if there are intermediate layers, and the
        last layer's head -> what predicts.
        """
        supervised = []
        for index, layer in enumerate(self.intermediate):
            assert output.hidden_states is not None, "run the network with hidden_states=True"
            state = self.norms[index](output.hidden_states[layer - 1])  # (B, T, D)
            supervised.append(
                SupervisedLayer(
                    self.heads[index] if self.heads else head, state, self.weights[index]
                )
            )
        return [*supervised, SupervisedLayer(head, output.last, self.last_weight)]
