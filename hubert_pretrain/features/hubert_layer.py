"""Layers of a HuBERT checkpoint as features: the input of k-means in the second and later
iterations (HuBERT paper, section 3.2).

Tensor letters: B utterances, S samples, T frames, C conv channels, D width of a frame.
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
    """One or several layers of any readable HuBERT checkpoint. `LayerFeatures` defines "layer"."""

    def __init__(
        self,
        checkpoint: str | Path,
        layer: Layers,
        *,
        chunk_seconds: float = 60.0,
        context_seconds: float = 5.0,
        center_utterances: bool = False,
        precision: str = "float32",
    ) -> None:
        """
        Args:
            checkpoint: folder of a pretrain stage, or any other checkpoint that interop/load.py
                reads.
            layer: block number, from 1; a list of them, or "all", for several side by side.
            chunk_seconds: longest audio that attention sees at once.
            context_seconds: audio at each inner end of a chunk whose frames are discarded.
            center_utterances: subtract the mean over each utterance from its frames.
            precision: float32, or bfloat16 for matrix products and convolutions (faster on a GPU).

        Raises:
            ConfigError: the model has no such layer, or a chunk is not longer than its context.
        """
        super().__init__()
        self.model: Hubert = load_checkpoint(checkpoint).model.eval().requires_grad_(False)
        config = self.model.config
        self.grid = self.model.grid
        self.normalize_waveform = config.normalize_waveform
        # A batch norm maps zero padding to a non-zero constant, which leaks into real frames.
        self.padding_invariant = not config.conv_pos_batch_norm
        self._configure(
            layer,
            config.num_hidden_layers,
            name=str(checkpoint),
            chunk_seconds=chunk_seconds,
            context_seconds=context_seconds,
            center_utterances=center_utterances,
            precision=precision,
        )
        self._sha256 = weights_sha256(Path(checkpoint))

    @property
    def dim(self) -> int:
        """Width of the context encoder times the number of layers."""
        return self.model.config.hidden_size * len(self.layers)

    def fingerprint(self) -> dict[str, Any]:
        """The hash of the weights (so a checkpoint may be moved but not exchanged), the layer, and
        the treatment of the waveform.
        """
        return {
            "kind": "hubert_layer",
            "dim": self.dim,
            **self.settings(),
            "weights_sha256": self._sha256,
        }

    def encode(self, waveform: Tensor, num_samples: Tensor | None) -> Tensor:
        """(B, S) -> (B, T, C). A norm over time ignores the padding."""
        return self.model.encode_frames(waveform, num_samples)

    def context(self, features: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        projected = self.model.projection(features)
        output = self.model.context_encoder(projected, valid=valid, layers=max(self.layers))
        if len(self.layers) == 1:
            return output.last
        return torch.cat([output.states[layer - 1] for layer in self.layers], dim=-1)

    def conv_stack(self) -> ConvStack:
        """The layers of the front end. A log-mel front end counts as a single layer."""
        encoder = self.model.conv_encoder
        if isinstance(encoder, LogMelEncoder):
            return ConvStack(
                layers=[lambda piece: encoder(piece[:, 0]).transpose(1, 2)],
                conv=None,
                time_norm=None,
                activation=nn.Identity(),
                grid=self.grid,
            )
        first = encoder.layers[0]
        assert isinstance(first, ConvLayer)
        return ConvStack(
            layers=list(encoder.layers),
            conv=first.conv,
            time_norm=first.norm if isinstance(first.norm, TimeNorm) else None,
            activation=first.activation,
            grid=self.grid,
        )
