"""Kaldi mel energies and the log-mel front end."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import SAMPLE_RATE, FrameGrid
from hubert_pretrain.model.config import HubertConfig

LOW_FREQUENCY = 20.0
"""Hz; lower edge of the first mel filter. The upper edge of the last is the Nyquist frequency."""
PRE_EMPHASIS = 0.97
POVEY_POWER = 0.85
"""Kaldi's Povey window is a Hann window to this power: it goes to zero at the edges."""
FRAMES_AT_ONCE = {"cpu": 512, "cuda": 1 << 17}
"""Frames per pass. On a CPU a pass stays in the cache; on a GPU it bounds the memory for hour-long
recordings.
"""


class MelEnergies(nn.Module):
    """Log energies in mel bands as Kaldi computes them: flat waveform (S,) -> (F, bands), F =
    `grid.num_frames(S)`.

    Each window loses its mean, is pre-emphasised, weighted and padded to a power of two. Equal to
    torchaudio's `compliance.kaldi.fbank` and to Kaldi (tests/parity/).
    """

    window: Tensor
    mel: Tensor

    def __init__(self, grid: FrameGrid, num_bands: int) -> None:
        super().__init__()
        self.grid = grid
        self.num_bands = num_bands
        self.fft_size = 1 << (grid.window - 1).bit_length()
        # Tables are made in float32 as in Kaldi: the window's side lobes decide the empty mel bins
        # next to a loud one, and a window that is better than Kaldi's by 2e-7 moves the cepstra
        # there by 3e-3.
        window = torch.hann_window(grid.window, periodic=False, dtype=torch.float32).pow(
            POVEY_POWER
        )
        self.register_buffer("window", window, persistent=False)  # (window,)
        self.register_buffer(
            "mel", mel_filters(self.fft_size, num_bands), persistent=False
        )  # (bins, bands)

    def forward(self, flat: Tensor) -> Tensor:
        """(S,) -> (F, bands)."""
        frames = flat.unfold(0, self.grid.window, self.grid.hop)  # (F, window), a view
        at_once = FRAMES_AT_ONCE[flat.device.type]
        mel = nn.functional.pad(
            self.mel, (0, -self.num_bands % 8)
        )  # 24 columns take little more than half the time of 23
        energies = flat.new_empty(len(frames), mel.shape[1])
        scratch = self._scratch(flat, min(at_once, len(frames)))
        for start in range(0, len(frames), at_once):
            part = frames[start : start + at_once]
            power = self._power(part, *(each[: len(part)] for each in scratch))
            torch.mm(power, mel, out=energies[start : start + at_once])
        return self._logarithm(energies)[:, : self.num_bands]

    def _scratch(self, like: Tensor, frames: int) -> list[Tensor]:
        """What `_power` writes to. Arrays of its own in every pass would take half as long again:
        the system has to clear their pages.
        """
        widths = self.fft_size, self.grid.window, self.fft_size // 2 + 1
        return [like.new_zeros(frames, width) for width in widths]

    @staticmethod
    def _logarithm(energies: Tensor) -> Tensor:
        return energies.clamp_(min=torch.finfo(torch.float32).eps).log_()

    def of(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, F, bands), all at once and in operations that a compiler can fuse."""
        frames = waveform.unfold(1, self.grid.window, self.grid.hop)  # (B, F, window), a view
        return self._logarithm(
            self._power(frames, frames.new_zeros(*frames.shape[:2], self.fft_size)) @ self.mel
        )

    def _power(
        self,
        frames: Tensor,
        padded: Tensor,
        centred: Tensor | None = None,
        power: Tensor | None = None,
    ) -> Tensor:
        """(..., window) -> power spectrum (..., bins), by way of `padded` (..., fft_size), zeros,
        and of the other arrays, if given.
        """
        centred = torch.sub(frames, frames.mean(dim=-1, keepdim=True), out=centred)
        # Only this part is written: the rest is the padding, and the window's first value is 0.
        weighted = padded[..., 1 : self.grid.window]
        # In two steps, rounded as Kaldi rounds: with a fused multiply-add, empty mel bins next to
        # loud ones differ by 1e-2.
        weighted.copy_(centred[..., :-1]).mul_(-PRE_EMPHASIS).add_(centred[..., 1:]).mul_(
            self.window[1:]
        )
        squares = torch.view_as_real(torch.fft.rfft(padded)).square_()
        return torch.add(
            squares[..., 0], squares[..., 1], out=power
        )  # not sum(-1): sums over two neighbours do not vectorise


def mel_filters(fft_size: int, num_bands: int) -> Tensor:
    """Kaldi's triangles, equally wide on the mel scale; the Nyquist bin belongs to none. (bins,
    bands) float32.
    """
    frequencies = SAMPLE_RATE / fft_size * torch.arange(fft_size // 2, dtype=torch.float32)
    low, high = (
        1127.0 * math.log1p(frequency / 700.0) for frequency in (LOW_FREQUENCY, SAMPLE_RATE / 2)
    )
    edges = low + (high - low) / (num_bands + 1) * torch.arange(num_bands + 2, dtype=torch.float32)
    left = edges[:-2]
    centre = edges[1:-1]
    right = edges[2:]
    mel = 1127.0 * (1.0 + frequencies / 700.0).log()[:, None]
    triangles = torch.minimum(
        (mel - left) / (centre - left), (right - mel) / (right - centre)
    ).clamp(min=0)
    return nn.functional.pad(triangles, (0, 0, 0, 1))


MEAN = -0.3
DEVIATION = 3.85
"""Of the log-mel energies of speech of unit variance (`normalize_waveform`), over all bands:
measured on LibriSpeech.
"""


class LogMelEncoder(nn.Module):
    """(B, S) -> (B, T, C): `mel_stack` neighbouring mel frames side by side, oldest first, with `T
    = config.grid.num_frames(S)`.

    The energies are those of features/log_mel.py, minus MEAN, over DEVIATION: the same two numbers
    for every band and utterance, so that a crop gives what the whole utterance gives, and padding
    changes nothing. Computed in fp32, and without gradients: nothing here learns.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.stack = config.mel_stack
        self.grid = config.grid
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
            # Not a transposed flatten: torch.export cannot reason about its strides when the length
            # is dynamic.
            return torch.cat(
                x.unfold(1, self.stack, self.stack).unbind(3), dim=2
            )  # (B, T, bands, stack) -> (B, T, C)
