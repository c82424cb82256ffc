"""Layers of a HuBERT checkpoint as features: what iteration 2 clusters (paper section 3.2,
reference.md 2.10).

Tensor alphabet: B utterances, S samples, T frames, C conv channels, D width, L layer (1-based).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain.features.chunking import ConvStack
from hubert_pretrain.features.layer import LayerFeatures, Layers, weights_sha256
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.conv_encoder import ConvLayer, TimeNorm
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.log_mel import LogMelEncoder


class HubertLayer(LayerFeatures):
    """One layer or several of any checkpoint that model/ reads; see LayerFeatures for what "layer"
    means.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        layer: Layers,
        *,
        chunk_seconds: float = 60.0,
        context_seconds: float = 5.0,
        precision: str = "float32",
    ) -> None:
        """
        Args:
            checkpoint: folder of a run, or any other checkpoint that interop/load.py reads. layer:
            which block, 1 to the number of layers; a list or "all" for several side by side.
            chunk_seconds: longest stretch that attention sees at once. context_seconds: what is
            thrown away at each inner end of a chunk. precision: float32, or bfloat16 for matrix
            products and convolutions (worth it on a GPU).

        Raises:
            ConfigError: the model has no such layer, or the context leaves nothing of a chunk.
        """
        super().__init__()
        self.model: Hubert = load_checkpoint(checkpoint).model.eval().requires_grad_(False)
        config = self.model.config
        self.grid = self.model.grid
        self.normalize_waveform = config.normalize_waveform
        self.pads = (
            not config.conv_pos_batch_norm
        )  # whose shift makes padding audible to its neighbours
        self._set_up(
            layer,
            config.num_hidden_layers,
            name=str(checkpoint),
            chunk_seconds=chunk_seconds,
            context_seconds=context_seconds,
            precision=precision,
        )
        self._sha256 = weights_sha256(Path(checkpoint))

    @property
    def dim(self) -> int:
        """The width of the context encoder, times the number of layers."""
        return self.model.config.hidden_size * len(self.layers)

    def fingerprint(self) -> dict[str, Any]:
        """The weights by their hash, so that a checkpoint may be moved but not exchanged; the
        layer; how the waveform was treated.
        """
        return {
            "kind": "hubert_layer",
            "dim": self.dim,
            **self.settings(),
            "weights_sha256": self._sha256,
        }

    def encode(self, waveform: Tensor, num_samples: Tensor | None) -> Tensor:
        """(B, S) -> (B, T, C); a norm over time leaves padding out."""
        return self.model.encode_frames(waveform, num_samples)

    def context(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        output = self.model.context_encoder(
            self.model.projection(features), valid=valid, layers=max(self.layers)
        )
        return (
            output.last
            if len(self.layers) == 1
            else torch.cat([output.states[layer - 1] for layer in self.layers], dim=-1)
        )

    def conv_stack(self) -> ConvStack:
        """The model's front end: one of log-mel frames is a single layer."""
        encoder = self.model.conv_encoder
        if isinstance(encoder, LogMelEncoder):
            return ConvStack(
                [lambda piece: encoder(piece[:, 0]).transpose(1, 2)],
                None,
                None,
                nn.Identity(),
                self.grid,
            )
        layers = list(encoder.layers)
        first = layers[0]
        assert isinstance(first, ConvLayer)
        norm = first.norm if isinstance(first.norm, TimeNorm) else None
        return ConvStack(layers, first.conv, norm, first.activation, self.grid)
