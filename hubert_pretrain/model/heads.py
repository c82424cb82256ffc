"""What is put on top of HuBERT: letters (CTC), one class per utterance, and for pretraining model/pretraining_head.py.

Shapes: B utterances, T frames, D width, V vocabulary, d width of a classifier's projection.
Each head knows its `kind` and the `settings` that rebuild it, so that a checkpoint explains itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from hubert_pretrain.model.hubert import HubertOutput
from hubert_pretrain.model.pretraining_head import CodebookHead, SoftmaxHead, pretraining_head


class LetterHead(nn.Module):
    """A score of each frame for each symbol (fairseq's HubertEncoder.proj, `transformers`' lm_head)."""

    kind: ClassVar[str] = "ctc"

    def __init__(self, hidden_size: int, vocabulary_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, vocabulary_size)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {"hidden_size": self.linear.in_features, "vocabulary_size": self.linear.out_features, "dropout": self.dropout.p}

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V) logits; the first symbol is the blank."""
        return self.linear(self.dropout(x))


class ClassificationHead(nn.Module):
    """One class per utterance: layers (weighted, or the last), projection, mean over valid frames, classifier.

    The same computation as `transformers.HubertForSequenceClassification` 5.x: the weighted sum runs over the input of layer 1 and the
    output of each layer, for pre-norm models without the final norm.
    """

    kind: ClassVar[str] = "classify"

    def __init__(
        self, hidden_size: int, n_classes: int, projection_size: int = 256, n_layers: int = 0, weighted_layers: bool = False
    ) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.full((n_layers + 1,), 1.0 / (n_layers + 1))) if weighted_layers else None
        self.projection = nn.Linear(hidden_size, projection_size)
        self.linear = nn.Linear(projection_size, n_classes)

    @property
    def weighted_layers(self) -> bool:
        """Whether it needs every layer: then run the network with `hidden_states=True`."""
        return self.layer_weights is not None

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {
            "hidden_size": self.projection.in_features,
            "n_classes": self.linear.out_features,
            "projection_size": self.projection.out_features,
            "n_layers": 0 if self.layer_weights is None else len(self.layer_weights) - 1,
            "weighted_layers": self.weighted_layers,
        }

    def forward(self, output: HubertOutput, valid: Tensor | None = None) -> Tensor:
        """The network's output and (B, T) bool of real frames (None: all) -> (B, n_classes) logits."""
        x = self.projection(self._mixed(output))  # (B, T, d)
        if valid is None:
            return self.linear(x.mean(1))
        real = valid[..., None].to(x.dtype)
        return self.linear((x * real).sum(1) / real.sum(1))

    def _mixed(self, output: HubertOutput) -> Tensor:
        if self.layer_weights is None:
            return output.last
        if output.hidden_states is None:
            raise ValueError("a weighted layer sum needs every layer: run the network with hidden_states=True")
        states = torch.stack([output.embedded, *output.hidden_states])  # (N + 1, B, T, D)
        return torch.einsum("n,nbtd->btd", self.layer_weights.softmax(0), states)


Head: TypeAlias = CodebookHead | SoftmaxHead | LetterHead | ClassificationHead
HEADS: dict[str, Callable[..., Head]] = {
    CodebookHead.kind: pretraining_head,
    LetterHead.kind: LetterHead,
    ClassificationHead.kind: ClassificationHead,
}
"""What makes the head of each kind of checkpoint from its settings."""
