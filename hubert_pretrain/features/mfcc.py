"""Kaldi's MFCC with first and second derivatives: the features of HuBERT's first iteration (paper section 3.2, reference.md 2.1).

Equal to `torchaudio.compliance.kaldi.mfcc(use_energy=False)` followed by two `compute_deltas` (tests/parity/test_mfcc.py), but batched
and with its tables built once. Tensor alphabet: B utterances, S samples, T frames, D width; F frames on Kaldi's 100 Hz grid.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID, SAMPLE_RATE, FrameGrid

NUM_CEPSTRA = 13
NUM_MEL_BINS = 23
LOW_FREQUENCY = 20.0
"""Hz; lower edge of the first mel filter. The upper edge of the last is the Nyquist frequency."""
PRE_EMPHASIS = 0.97
LIFTER = 22.0
POVEY_POWER = 0.85
"""Kaldi's Povey window is a Hann window to this power: it goes to zero at the edges."""
FFT_SIZE = 1 << (MFCC_GRID.window - 1).bit_length()
FRAMES_AT_ONCE = 1024
"""Frames per pass through the spectrum: bounds the memory for hour-long recordings and stays in the processor's cache."""


class Mfcc(nn.Module):
    """13 cepstra (C0 kept, no energy, no mean subtraction) with deltas and delta-deltas: (B, S) -> (B, T, 39).

    Derivatives are taken on the 100 Hz grid, as in the reference; then every second frame is kept, which is the model's grid.
    The waveform is used as it is, in [-1, 1]: quiet frames hit the floor of the logarithm, and rescaling would change the clusters.
    """

    window: Tensor
    mel: Tensor
    cosine: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Tables are made in float32 as in Kaldi: the window's side lobes decide the empty mel bins next to a loud one, and a window that
        # is better than Kaldi's by 2e-7 moves the cepstra there by 3e-3.
        window = torch.hann_window(MFCC_GRID.window, periodic=False, dtype=torch.float32).pow(POVEY_POWER)
        self.register_buffer("window", window, persistent=False)  # (window,)
        self.register_buffer("mel", mel_filters(), persistent=False)  # (bins, NUM_MEL_BINS)
        self.register_buffer("cosine", cosine_transform(), persistent=False)  # (NUM_MEL_BINS, NUM_CEPSTRA)

    @property
    def grid(self) -> FrameGrid:
        """The model's grid."""
        return MODEL_GRID

    @property
    def dim(self) -> int:
        """Static, delta and delta-delta."""
        return 3 * NUM_CEPSTRA

    def fingerprint(self) -> dict[str, Any]:
        """The Kaldi recipe has no choices here, so the kind says it all."""
        return {"kind": "mfcc", "dim": self.dim, "cepstra": NUM_CEPSTRA, "mel_bins": NUM_MEL_BINS, "normalize_waveform": False}

    @torch.inference_mode()
    def forward(self, waveform: Tensor) -> Tensor:
        """Frames of equally long waveforms; T = `MODEL_GRID.num_frames(S)`, 0 for less than one window."""
        if waveform.shape[-1] < MFCC_GRID.window:
            return waveform.new_zeros(waveform.shape[0], 0, self.dim)
        static = self.cepstra(waveform)  # (B, F, 13)
        first = deltas(static)
        return torch.cat([static, first, deltas(first)], dim=-1)[:, ::2]  # (B, T, 39)

    def cepstra(self, waveform: Tensor) -> Tensor:
        """The static coefficients on Kaldi's grid: (B, S) -> (B, F, 13)."""
        frames = waveform.unfold(-1, MFCC_GRID.window, MFCC_GRID.hop)  # (B, F, window), a view
        return torch.cat([self._cepstra(part) for part in frames.split(FRAMES_AT_ONCE, dim=1)], dim=1)

    def _cepstra(self, frames: Tensor) -> Tensor:
        frames = frames - frames.mean(dim=-1, keepdim=True)
        # The sample before the first is taken to be the first, as in Kaldi.
        frames = torch.cat([(1 - PRE_EMPHASIS) * frames[..., :1], frames[..., 1:] - PRE_EMPHASIS * frames[..., :-1]], dim=-1)
        spectrum = torch.view_as_real(torch.fft.rfft(frames * self.window, n=FFT_SIZE))  # (B, F, bins, 2)
        energies = spectrum.square().sum(-1) @ self.mel
        return energies.clamp(min=torch.finfo(torch.float32).eps).log() @ self.cosine


def deltas(frames: Tensor) -> Tensor:
    """Slopes by regression over five frames, edges replicated (`compute_deltas(win_length=5)`): (B, F, D) -> (B, F, D)."""
    first, last = frames[:, :1], frames[:, -1:]
    padded = torch.cat([first, first, frames, last, last], dim=1)
    return ((padded[:, 3:-1] - padded[:, 1:-3]) + 2 * (padded[:, 4:] - padded[:, :-4])) / 10


def mel_filters() -> Tensor:
    """Kaldi's triangles, equally wide on the mel scale; the Nyquist bin belongs to none. (bins, NUM_MEL_BINS) float32."""
    frequencies = SAMPLE_RATE / FFT_SIZE * torch.arange(FFT_SIZE // 2, dtype=torch.float32)
    low, high = (1127.0 * math.log1p(frequency / 700.0) for frequency in (LOW_FREQUENCY, SAMPLE_RATE / 2))
    edges = low + (high - low) / (NUM_MEL_BINS + 1) * torch.arange(NUM_MEL_BINS + 2, dtype=torch.float32)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    mel = 1127.0 * (1.0 + frequencies / 700.0).log()[:, None]
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    return nn.functional.pad(triangles, (0, 0, 0, 1))


def cosine_transform() -> Tensor:
    """The orthonormal DCT-II of the log mel energies with Kaldi's lifter folded in. (NUM_MEL_BINS, NUM_CEPSTRA) float32."""
    bins = torch.arange(NUM_MEL_BINS, dtype=torch.float32)[:, None]
    orders = torch.arange(NUM_CEPSTRA, dtype=torch.float32)
    table = math.sqrt(2 / NUM_MEL_BINS) * torch.cos(math.pi / NUM_MEL_BINS * (bins + 0.5) * orders)
    table[:, 0] = math.sqrt(1 / NUM_MEL_BINS)
    return table * (1 + LIFTER / 2 * torch.sin(math.pi * orders / LIFTER))
