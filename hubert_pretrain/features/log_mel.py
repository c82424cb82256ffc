"""Kaldi's log-mel energies (filter bank features) on any frame grid.

Tensor letters: B utterances, S samples, T frames, N frames of all utterances, D width of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.extractor import Batches, packed_batches
from hubert_pretrain.features.mfcc import BATCH_SECONDS
from hubert_pretrain.features.spectrum import gather_index, pack_utterances
from hubert_pretrain.fields import positive
from hubert_pretrain.frames import MODEL_GRID, FrameGrid, samples, seconds
from hubert_pretrain.model.log_mel import MelEnergies


class LogMel(nn.Module):
    """Logarithms of the energies in mel bands, as Kaldi's `fbank` without dither: (B, S) -> (B, T,
    num_mel_bins).

    The waveform is used as it is, in [-1, 1]. With the defaults the frames lie on the model's grid,
    one every 20 ms. For a model whose front end makes a frame every 40 ms, `hop_seconds=0.04` (and
    its window) gives that model's grid.

    Args:
        num_mel_bins: mel bands.
        hop_seconds: time from one frame to the next.
        window_seconds: time that a frame sees.
    """

    def __init__(
        self,
        num_mel_bins: Annotated[int, positive] = 80,
        *,
        hop_seconds: Annotated[float, positive] = seconds(MODEL_GRID.hop),
        window_seconds: Annotated[float, positive] = seconds(MODEL_GRID.window),
    ) -> None:
        super().__init__()
        if num_mel_bins < 1 or samples(hop_seconds) < 1 or samples(window_seconds) < 2:
            raise ConfigError(
                f"log-mel features: num_mel_bins={num_mel_bins}, hop_seconds={hop_seconds}, "
                f"window_seconds={window_seconds}; expected a positive number of bins, and times "
                "of at least a few samples"
            )
        self._grid = FrameGrid(window=samples(window_seconds), hop=samples(hop_seconds))
        self.energies = MelEnergies(self._grid, num_mel_bins)
        if bool((self.energies.mel.sum(0) == 0).any()):
            raise ConfigError(
                f"log-mel features: some of num_mel_bins={num_mel_bins} lie between two bins of a "
                f"spectrum of {self.energies.fft_size} points and would always be empty; choose "
                "fewer, or a longer window_seconds"
            )

    @property
    def grid(self) -> FrameGrid:
        """The grid of window_seconds and hop_seconds."""
        return self._grid

    @property
    def dim(self) -> int:
        """One energy per mel band."""
        return self.energies.num_bands

    def fingerprint(self) -> dict[str, Any]:
        """Number of bands, window and hop."""
        return {
            "kind": "log_mel",
            "dim": self.dim,
            "window_samples": self.grid.window,
            "hop_samples": self.grid.hop,
            "normalize_waveform": False,
        }

    def forward(self, waveform: Tensor) -> Tensor:
        """Frames of waveforms of equal length: (B, S) -> (B, T, D)."""
        num_frames = self.grid.num_frames(waveform.shape[-1])
        return self.extract_packed(list(waveform)).view(len(waveform), num_frames, self.dim)

    @torch.inference_mode()
    def extract_packed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Concatenated frames (N, D) of utterances (S_i,) of any lengths."""
        packed, firsts, counts = pack_utterances(waveforms, self.grid)
        return self.energies(packed).index_select(0, gather_index(counts, firsts).to(packed.device))

    def plan_batches(self, num_samples: NDArray[np.int64]) -> Batches:
        """One minute of neighbouring utterances of any lengths: nothing is padded."""
        return packed_batches(num_samples, samples(BATCH_SECONDS))
