"""A front end without weights: log-mel energies, several frames side by side (MelHuBERT, arXiv:2211.09944, section 3).

Shapes: B utterances, S samples, F mel frames, T frames, C channels = frames side by side x mel bands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.mel import MelEnergies

MEAN, DEVIATION = -0.3, 3.85
"""Of the log-mel energies of speech of unit variance (`normalize_waveform`), over all bands: measured on LibriSpeech."""


class LogMelEncoder(nn.Module):
    """(B, S) -> (B, T, C): `mel_stack` neighbouring mel frames side by side, oldest first, with `T = config.grid.num_frames(S)`.

    The energies are those of features/log_mel.py, minus MEAN, over DEVIATION: the same two numbers for every band and utterance, so that a
    crop gives what the whole utterance gives, and padding changes nothing. Computed in fp32, and without gradients: nothing here learns.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.stack, self.grid = config.mel_stack, config.grid
        self.energies = MelEnergies(config.mel_grid, config.mel_bins)
        if not self.energies.mel.is_meta and bool((self.energies.mel.sum(0) == 0).any()):
            raise ConfigError(
                f"model.mel_bins={config.mel_bins}: some lie between two bins of a spectrum of {self.energies.fft_size} points and would "
                "always be empty; choose fewer, or a longer model.mel_window_seconds"
            )

    def forward(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, T, C). `num_samples` is not needed: no frame hears of another."""
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            x = (self.energies.of(waveform.float()) - MEAN) / DEVIATION  # (B, F, bands)
            # Not a transposed flatten: torch.export cannot reason about its strides when the length is dynamic.
            return torch.cat(x.unfold(1, self.stack, self.stack).unbind(3), dim=2)  # (B, T, bands, stack) -> (B, T, C)
