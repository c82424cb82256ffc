"""Kaldi's MFCC with first and second derivatives: the features of HuBERT's first iteration (paper
section 3.2, reference.md 2.1).

Equal to `torchaudio.compliance.kaldi.mfcc(use_energy=False)` followed by two `compute_deltas`
(tests/parity/test_mfcc.py), but for many utterances at once and with its tables built once. Tensor
alphabet: B utterances, S samples, T frames, N frames of all utterances, D width; F frames on
Kaldi's 100 Hz grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.extractor import Batches, packed_batches
from hubert_pretrain.features.spectrum import deltas, gather_index, pack_utterances
from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID, FrameGrid, samples, seconds
from hubert_pretrain.model.log_mel import MelEnergies

NUM_CEPSTRA = 13
NUM_MEL_BINS = 23
LIFTER = 22.0
BATCH_SECONDS = 60.0
"""Audio per batch: enough that the calls cost nothing beside the work, little enough for every
worker to have some.
"""


class Mfcc(nn.Module):
    """13 cepstra (C0 kept, no energy, no mean subtraction) with deltas and delta-deltas: (B, S) ->
    (B, T, 39).

    Derivatives are taken on the 100 Hz grid, as in the reference; then every second frame is kept,
    which is the model's grid. On the grid of another model, the frame in the middle of each of its
    windows is kept. The waveform is used as it is, in [-1, 1]: quiet frames hit the floor of the
    logarithm, and rescaling would change the clusters.
    """

    cosine: Tensor

    def __init__(
        self,
        *,
        hop_seconds: float = seconds(MODEL_GRID.hop),
        window_seconds: float = seconds(MODEL_GRID.window),
    ) -> None:
        super().__init__()
        self._grid = FrameGrid(window=samples(window_seconds), hop=samples(hop_seconds))
        self._step, odd = divmod(self._grid.hop, MFCC_GRID.hop)
        margin = self._grid.window - MFCC_GRID.window
        if odd or self._step < 1 or margin < 0:
            raise ConfigError(
                f"MFCC: hop_seconds={hop_seconds}, window_seconds={window_seconds}; Kaldi's lie {seconds(MFCC_GRID.hop)} s apart and "
                f"are {seconds(MFCC_GRID.window)} s long: expected a multiple of the first, "
                "and no less than the second"
            )
        self._first = (
            margin // 2 // MFCC_GRID.hop
        )  # of Kaldi's frames in each window, the one in the middle
        self.energies = MelEnergies(MFCC_GRID, NUM_MEL_BINS)
        self.register_buffer(
            "cosine", cosine_transform(), persistent=False
        )  # (NUM_MEL_BINS, NUM_CEPSTRA)

    @property
    def grid(self) -> FrameGrid:
        """The model's grid, unless another was asked for."""
        return self._grid

    @property
    def dim(self) -> int:
        """Static, delta and delta-delta."""
        return 3 * NUM_CEPSTRA

    def fingerprint(self) -> dict[str, Any]:
        """The Kaldi recipe has no choices here, so the kind says it all, but for the grid, which
        every codebook keeps.
        """
        return {
            "kind": "mfcc",
            "dim": self.dim,
            "cepstra": NUM_CEPSTRA,
            "mel_bins": NUM_MEL_BINS,
            "normalize_waveform": False,
        }

    def forward(self, waveform: Tensor) -> Tensor:
        """Frames of equally long waveforms; T = `grid.num_frames(S)`, 0 for less than one
        window.
        """
        return self.ragged(list(waveform)).view(
            len(waveform), self.grid.num_frames(waveform.shape[-1]), self.dim
        )

    @torch.inference_mode()
    def ragged(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Frames (N, 39) of utterances (S_i,) of any lengths, behind one another."""
        flat, firsts, counts = pack_utterances(waveforms, MFCC_GRID)
        static = self.energies(flat) @ self.cosine  # (F, 13), with frames between the utterances
        first = deltas(static, counts, firsts)  # (N at 100 Hz, 13)
        second = deltas(first, counts)
        every: dict[str, Any] = {"step": self._step, "offset": self._first}
        every["rows"] = [self.grid.num_frames(len(waveform)) for waveform in waveforms]
        kept = gather_index(counts, **every).to(flat.device)
        static_kept = gather_index(counts, firsts, **every).to(flat.device)
        return torch.cat([static[static_kept], first[kept], second[kept]], dim=-1)

    def batches(self, num_samples: NDArray[np.int64]) -> Batches:
        """A minute of neighbours at a time, whatever their lengths: nothing is padded."""
        return packed_batches(num_samples, samples(BATCH_SECONDS))

    @torch.inference_mode()
    def cepstra(self, waveform: Tensor) -> Tensor:
        """The static coefficients of one utterance on Kaldi's grid: (S,) -> (F, 13)."""
        flat, _, (count,) = pack_utterances([waveform], MFCC_GRID)
        return (self.energies(flat) @ self.cosine)[:count]


def cosine_transform() -> Tensor:
    """The orthonormal DCT-II of the log mel energies with Kaldi's lifter folded in. (NUM_MEL_BINS,
    NUM_CEPSTRA) float32.
    """
    bins = torch.arange(NUM_MEL_BINS, dtype=torch.float32)[:, None]
    orders = torch.arange(NUM_CEPSTRA, dtype=torch.float32)
    table = math.sqrt(2 / NUM_MEL_BINS) * torch.cos(math.pi / NUM_MEL_BINS * (bins + 0.5) * orders)
    table[:, 0] = math.sqrt(1 / NUM_MEL_BINS)
    return table * (1 + LIFTER / 2 * torch.sin(math.pi * orders / LIFTER))
