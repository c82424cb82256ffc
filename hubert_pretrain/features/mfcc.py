"""Kaldi's MFCC with first and second derivatives: the features of HuBERT's first iteration (HuBERT
paper, section 3.2).

Equal to `torchaudio.compliance.kaldi.mfcc(use_energy=False)` followed by two `compute_deltas`
(tests/parity/test_mfcc.py), but for many utterances at once, with the tables built once.

Tensor letters: B utterances, S samples, T frames, N frames of all utterances, D width of a frame, F
frames of the packed waveform on Kaldi's 100 Hz grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.extractor import Batches, packed_batches
from hubert_pretrain.features.spectrum import deltas, gather_index, pack_utterances
from hubert_pretrain.fields import positive
from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID, FrameGrid, samples, seconds
from hubert_pretrain.model.log_mel import MelEnergies

NUM_CEPSTRA = 13
NUM_MEL_BINS = 23
LIFTER = 22.0
BATCH_SECONDS = 60.0
"""Audio per batch: enough that the cost of the calls vanishes, little enough that every worker gets
some."""


class Mfcc(nn.Module):
    """13 cepstra (with C0, without energy and mean subtraction), deltas and delta-deltas: (B, S) ->
    (B, T, 39).

    Derivatives are taken on Kaldi's 100 Hz grid, as in the reference; then every second frame is
    selected, which gives the model's grid. On the grid of another model, the 100 Hz frame in the
    middle of each of its windows is selected. The waveform is used as it is, in [-1, 1]: quiet
    frames hit the floor of the logarithm, and rescaling would change the clusters.

    Args:
        hop_seconds: time from one frame to the next.
        window_seconds: time that a frame sees.
    """

    cosine: Tensor

    def __init__(
        self,
        *,
        hop_seconds: Annotated[float, positive] = seconds(MODEL_GRID.hop),
        window_seconds: Annotated[float, positive] = seconds(MODEL_GRID.window),
    ) -> None:
        super().__init__()
        self._grid = FrameGrid(window=samples(window_seconds), hop=samples(hop_seconds))
        self._step, remainder = divmod(self._grid.hop, MFCC_GRID.hop)
        margin = self._grid.window - MFCC_GRID.window
        if remainder or self._step < 1 or margin < 0:
            raise ConfigError(
                f"MFCC: hop_seconds={hop_seconds}, window_seconds={window_seconds}; Kaldi's frames "
                f"lie {seconds(MFCC_GRID.hop)} s apart and are {seconds(MFCC_GRID.window)} s long: "
                "expected a multiple of the first, and no less than the second"
            )
        # Number of Kaldi's frame in the middle of the first window.
        self._offset = margin // 2 // MFCC_GRID.hop
        self.energies = MelEnergies(MFCC_GRID, NUM_MEL_BINS)
        # (NUM_MEL_BINS, NUM_CEPSTRA)
        self.register_buffer("cosine", cosine_transform(), persistent=False)

    @property
    def grid(self) -> FrameGrid:
        """The model's grid by default."""
        return self._grid

    @property
    def dim(self) -> int:
        """Static, delta and delta-delta coefficients."""
        return 3 * NUM_CEPSTRA

    def fingerprint(self) -> dict[str, Any]:
        """The Kaldi recipe has no options here; the grid is stored with every codebook anyway."""
        return {
            "kind": "mfcc",
            "dim": self.dim,
            "cepstra": NUM_CEPSTRA,
            "mel_bins": NUM_MEL_BINS,
            "normalize_waveform": False,
        }

    def forward(self, waveform: Tensor) -> Tensor:
        """Frames of waveforms of equal length: (B, S) -> (B, T, 39); T is 0 below one window."""
        num_frames = self.grid.num_frames(waveform.shape[-1])
        return self.extract_packed(list(waveform)).view(len(waveform), num_frames, self.dim)

    @torch.inference_mode()
    def extract_packed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Concatenated frames (N, 39) of utterances (S_i,) of any lengths."""
        packed, firsts, counts = pack_utterances(waveforms, MFCC_GRID)
        static = self.energies(packed) @ self.cosine  # (F, 13), with frames between the utterances
        first = deltas(static, counts, firsts)  # (N at 100 Hz, 13)
        second = deltas(first, counts)  # (N at 100 Hz, 13)

        # From 100 Hz to the grid of the model. Only `static` has frames between the utterances.
        rows = [self.grid.num_frames(len(waveform)) for waveform in waveforms]
        of_static = gather_index(counts, firsts, step=self._step, offset=self._offset, rows=rows)
        of_deltas = gather_index(counts, step=self._step, offset=self._offset, rows=rows)
        of_static = of_static.to(packed.device)
        of_deltas = of_deltas.to(packed.device)
        return torch.cat([static[of_static], first[of_deltas], second[of_deltas]], dim=-1)

    def plan_batches(self, num_samples: NDArray[np.int64]) -> Batches:
        """One minute of neighbouring utterances of any lengths: nothing is padded."""
        return packed_batches(num_samples, samples(BATCH_SECONDS))

    @torch.inference_mode()
    def cepstra(self, waveform: Tensor) -> Tensor:
        """The static coefficients of one utterance on Kaldi's grid: (S,) -> (F, 13)."""
        packed, _, counts = pack_utterances([waveform], MFCC_GRID)
        return (self.energies(packed) @ self.cosine)[: counts[0]]


def cosine_transform() -> Tensor:
    """Orthonormal DCT-II of the log mel energies, with Kaldi's lifter folded in: (NUM_MEL_BINS,
    NUM_CEPSTRA) float32.
    """
    bins = torch.arange(NUM_MEL_BINS, dtype=torch.float32)[:, None]
    orders = torch.arange(NUM_CEPSTRA, dtype=torch.float32)
    table = math.sqrt(2 / NUM_MEL_BINS) * torch.cos(math.pi / NUM_MEL_BINS * (bins + 0.5) * orders)
    table[:, 0] = math.sqrt(1 / NUM_MEL_BINS)
    return table * (1 + LIFTER / 2 * torch.sin(math.pi * orders / LIFTER))
