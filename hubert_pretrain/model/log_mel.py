"""Kaldi mel energies and the log-mel front end.

Letters: B utterances, S samples, F mel frames, T frames, C channels of a frame.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import SAMPLE_RATE, FrameGrid
from hubert_pretrain.model.config import HubertConfig

LOW_FREQUENCY = 20.0
"""Hz, lower edge of the first mel filter. The upper edge of the last is the Nyquist frequency."""
PRE_EMPHASIS = 0.97
POVEY_POWER = 0.85
"""Kaldi's Povey window is a Hann window to this power; it is zero at the edges."""
FRAMES_AT_ONCE = {"cpu": 512, "cuda": 1 << 17}
"""Frames per pass: on a CPU few enough for the cache; on a GPU few enough for the memory, with
hour-long recordings.
"""
SPEECH_MEAN = -0.3
SPEECH_DEVIATION = 3.85
"""Mean and standard deviation, over all bands, of the log-mel energies of speech of unit variance
(`normalize_waveform`), measured on LibriSpeech.
"""


class MelEnergies(nn.Module):
    """Log energies in mel bands as in Kaldi: flat waveform (S,) -> (F, bands), F =
    `grid.num_frames(S)`.

    From each window the mean is subtracted; it is pre-emphasised, multiplied by the Povey window
    and padded to a power of two. Equal to torchaudio's `compliance.kaldi.fbank` and to Kaldi
    (tests/parity/).
    """

    window: Tensor
    mel: Tensor

    def __init__(self, grid: FrameGrid, num_bands: int) -> None:
        super().__init__()
        self.grid = grid
        self.num_bands = num_bands
        self.fft_size = 1 << (grid.window - 1).bit_length()
        # The window is computed in float32 as in Kaldi. Its side lobes decide the values of empty
        # mel bins beside a loud one: a window more exact than Kaldi's by 2e-7 changes the cepstra
        # there by 3e-3.
        window = torch.hann_window(grid.window, periodic=False, dtype=torch.float32).pow(
            POVEY_POWER
        )
        self.register_buffer("window", window, persistent=False)  # (window,)
        mel = mel_filters(self.fft_size, num_bands)
        self.register_buffer("mel", mel, persistent=False)  # (bins, bands)

    def forward(self, flat: Tensor) -> Tensor:
        """(S,) -> (F, bands)."""
        frames = flat.unfold(0, self.grid.window, self.grid.hop)  # (F, window), a view
        at_once = FRAMES_AT_ONCE[flat.device.type]
        # A matrix product with 24 columns takes little more than half the time of one with 23.
        mel = nn.functional.pad(self.mel, (0, -self.num_bands % 8))
        energies = flat.new_empty(len(frames), mel.shape[1])
        scratch = self._scratch(flat, min(at_once, len(frames)))
        for start in range(0, len(frames), at_once):
            part = frames[start : start + at_once]
            power = self._power(part, *(each[: len(part)] for each in scratch))
            torch.mm(power, mel, out=energies[start : start + at_once])
        return self._logarithm(energies)[:, : self.num_bands]

    def _scratch(self, like: Tensor, frames: int) -> list[Tensor]:
        """Arrays that `_power` writes to. New arrays in each pass would take half as long again,
        because the system clears their pages.
        """
        widths = self.fft_size, self.grid.window, self.fft_size // 2 + 1
        return [like.new_zeros(frames, width) for width in widths]

    @staticmethod
    def _logarithm(energies: Tensor) -> Tensor:
        return energies.clamp_(min=torch.finfo(torch.float32).eps).log_()

    def of(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, F, bands), at once and in operations that a compiler can fuse."""
        frames = waveform.unfold(1, self.grid.window, self.grid.hop)  # (B, F, window), a view
        padded = frames.new_zeros(*frames.shape[:2], self.fft_size)
        return self._logarithm(self._power(frames, padded) @ self.mel)

    def _power(
        self,
        frames: Tensor,
        padded: Tensor,
        centred: Tensor | None = None,
        power: Tensor | None = None,
    ) -> Tensor:
        """(..., window) -> power spectrum (..., bins).

        padded: (..., fft_size) zeros, overwritten. centred (..., window) and power (..., bins), if
        given, are overwritten too.
        """
        centred = torch.sub(frames, frames.mean(dim=-1, keepdim=True), out=centred)
        # Only this part is written: the rest is padding, and the window's first value is 0.
        weighted = padded[..., 1 : self.grid.window]
        # Pre-emphasis in two steps, each rounded as in Kaldi: with a fused multiply-add, empty mel
        # bins beside loud ones differ by 1e-2.
        weighted.copy_(centred[..., :-1]).mul_(-PRE_EMPHASIS).add_(centred[..., 1:])
        weighted.mul_(self.window[1:])
        squares = torch.view_as_real(torch.fft.rfft(padded)).square_()
        # Not sum(-1), because sums of two neighbours do not vectorise.
        return torch.add(squares[..., 0], squares[..., 1], out=power)


def mel_filters(fft_size: int, num_bands: int) -> Tensor:
    """Kaldi's triangular filters, equally wide on the mel scale: (bins, bands) float32.

    The Nyquist bin belongs to none of them.
    """
    frequencies = SAMPLE_RATE / fft_size * torch.arange(fft_size // 2, dtype=torch.float32)
    low = 1127.0 * math.log1p(LOW_FREQUENCY / 700.0)
    high = 1127.0 * math.log1p(SAMPLE_RATE / 2 / 700.0)
    edges = low + (high - low) / (num_bands + 1) * torch.arange(num_bands + 2, dtype=torch.float32)
    left = edges[:-2]
    centre = edges[1:-1]
    right = edges[2:]
    mel = 1127.0 * (1.0 + frequencies / 700.0).log()[:, None]
    rising = (mel - left) / (centre - left)
    falling = (right - mel) / (right - centre)
    return nn.functional.pad(torch.minimum(rising, falling).clamp(min=0), (0, 0, 0, 1))


class LogMelEncoder(nn.Module):
    """The log-mel front end: (B, S) -> (B, T, C), T = `config.grid.num_frames(S)`.

    A frame is `mel_stack` neighbouring mel frames side by side, oldest first. The energies are
    those of features/log_mel.py, minus SPEECH_MEAN, divided by SPEECH_DEVIATION. Because these are
    the same for all bands and utterances, the frames of a crop are those of the whole utterance,
    and padding changes nothing. Computed in fp32 and without gradients: it has no weights.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.stack = config.mel_stack
        self.grid = config.grid
        self.energies = MelEnergies(config.mel_grid, config.mel_bins)
        if not self.energies.mel.is_meta and bool((self.energies.mel.sum(0) == 0).any()):
            raise ConfigError(
                f"model.mel_bins={config.mel_bins}: some lie between two bins of a spectrum of "
                f"{self.energies.fft_size} points and would always be empty; "
                "choose fewer, or a longer model.mel_window_seconds"
            )

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        *,
        gradient_checkpointing: bool = False,
    ) -> Tensor:
        """(B, S) -> (B, T, C). The other arguments are those of ConvEncoder.forward, and unused.

        Frames do not depend on each other, and nothing is kept for a backward pass.
        """
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            energies = self.energies.of(waveform.float())  # (B, F, bands)
            x = (energies - SPEECH_MEAN) / SPEECH_DEVIATION
            stacked = x.unfold(1, self.stack, self.stack)  # (B, T, bands, stack)
            # Not a transposed flatten: torch.export cannot reason about its strides when the length
            # is dynamic.
            return torch.cat(stacked.unbind(3), dim=2)  # (B, T, C)
