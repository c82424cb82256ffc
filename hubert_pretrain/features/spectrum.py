"""Kaldi's mel energies of many utterances at once: the tables and the one loop that MFCC and log-mel share.

Utterances of any lengths are laid behind one another on one frame grid, so that a batch costs as many calls as one utterance and no
frame is computed twice. Tensor alphabet: S samples, F frames on the flat grid, N frames of all utterances, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hubert_pretrain.frames import SAMPLE_RATE, FrameGrid

LOW_FREQUENCY = 20.0
"""Hz; lower edge of the first mel filter. The upper edge of the last is the Nyquist frequency."""
PRE_EMPHASIS = 0.97
POVEY_POWER = 0.85
"""Kaldi's Povey window is a Hann window to this power: it goes to zero at the edges."""
FRAMES_AT_ONCE = {"cpu": 512, "cuda": 1 << 17}
"""Frames per pass. On a CPU a pass stays in the second-level cache (1 MB); on a GPU it bounds the memory for hour-long recordings."""


class MelEnergies(nn.Module):
    """Log energies in mel bands as Kaldi computes them: flat waveform (S,) -> (F, bands), F = `grid.num_frames(S)`.

    Each window loses its mean, is pre-emphasised, weighted and padded to a power of two. Equal to torchaudio's
    `compliance.kaldi.fbank` and to Kaldi (tests/parity/).
    """

    window: Tensor
    mel: Tensor

    def __init__(self, grid: FrameGrid, num_bands: int) -> None:
        super().__init__()
        self.grid, self.num_bands = grid, num_bands
        self.fft_size = 1 << (grid.window - 1).bit_length()
        # Tables are made in float32 as in Kaldi: the window's side lobes decide the empty mel bins next to a loud one, and a window that
        # is better than Kaldi's by 2e-7 moves the cepstra there by 3e-3.
        window = torch.hann_window(grid.window, periodic=False, dtype=torch.float32).pow(POVEY_POWER)
        self.register_buffer("window", window, persistent=False)  # (window,)
        self.register_buffer("mel", mel_filters(self.fft_size, num_bands), persistent=False)  # (bins, bands)

    def forward(self, flat: Tensor) -> Tensor:
        """(S,) -> (F, bands)."""
        frames = flat.unfold(0, self.grid.window, self.grid.hop)  # (F, window), a view
        at_once = FRAMES_AT_ONCE[flat.device.type]
        energies = flat.new_empty(len(frames), self.num_bands)
        # Only [:, 1:window] of it is written: the rest is the padding, and the window's first value is 0.
        padded = flat.new_zeros(min(at_once, len(frames)), self.fft_size)
        for start in range(0, len(frames), at_once):
            part = frames[start : start + at_once]
            torch.mm(self._power(part, padded[: len(part)]), self.mel, out=energies[start : start + at_once])
        return energies.clamp_(min=torch.finfo(torch.float32).eps).log_()

    def _power(self, frames: Tensor, padded: Tensor) -> Tensor:
        """(F, window) -> power spectrum (F, bins), by way of `padded` (F, fft_size)."""
        centred = frames - frames.mean(dim=-1, keepdim=True)
        weighted = padded[:, 1 : self.grid.window]
        # In two steps, rounded as Kaldi rounds: with a fused multiply-add, empty mel bins next to loud ones differ by 1e-2.
        torch.mul(centred[:, :-1], PRE_EMPHASIS, out=weighted)
        torch.sub(centred[:, 1:], weighted, out=weighted).mul_(self.window[1:])
        spectrum = torch.fft.rfft(padded)
        # Not view_as_real(...).square().sum(-1), which takes five times as long: sums over two neighbours do not vectorise.
        return torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)


def mel_filters(fft_size: int, num_bands: int) -> Tensor:
    """Kaldi's triangles, equally wide on the mel scale; the Nyquist bin belongs to none. (bins, bands) float32."""
    frequencies = SAMPLE_RATE / fft_size * torch.arange(fft_size // 2, dtype=torch.float32)
    low, high = (1127.0 * math.log1p(frequency / 700.0) for frequency in (LOW_FREQUENCY, SAMPLE_RATE / 2))
    edges = low + (high - low) / (num_bands + 1) * torch.arange(num_bands + 2, dtype=torch.float32)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    mel = 1127.0 * (1.0 + frequencies / 700.0).log()[:, None]
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    return nn.functional.pad(triangles, (0, 0, 0, 1))


def lay_out(waveforms: Sequence[Tensor], grid: FrameGrid) -> tuple[Tensor, Tensor, list[int]]:
    """Utterances (S_i,) behind one another, each beginning at a frame of one grid.

    Returns:
        The flat waveform; the first flat frame of each utterance (int64, on the CPU); how many frames each has. The flat grid has a few
        frames more, which reach from one utterance into the next and belong to none.
    """
    counts = [grid.num_frames(len(waveform)) for waveform in waveforms]
    hops = [max(1, -(-len(waveform) // grid.hop)) for waveform in waveforms]
    flat = waveforms[0].new_zeros(sum(hops) * grid.hop + grid.window)
    position, firsts = 0, []
    for waveform, taken in zip(waveforms, hops, strict=True):
        flat[position * grid.hop : position * grid.hop + len(waveform)] = waveform
        firsts.append(position)
        position += taken
    return flat, torch.tensor(firsts, dtype=torch.int64), counts


def spread(counts: Sequence[int], firsts: Tensor | None = None, *, context: int = 0, step: int = 1) -> Tensor:
    """Which flat frames to read so that utterances with `counts` frames lie behind one another: int64 (sum of rows,).

    Args:
        counts: frames of each utterance.
        firsts: where each begins; None when they already lie behind one another.
        context: so many frames more on each side, the first and the last one repeated.
        step: every how many frames; 2 takes the even ones.
    """
    rows = torch.tensor([len(range(0, count, step)) for count in counts])
    wide = torch.where(rows > 0, rows + 2 * context, 0)
    ends = torch.cumsum(wide, 0)
    numbers = torch.arange(int(wide.sum())) - torch.repeat_interleave(ends - wide, wide) - context
    numbers = torch.minimum(numbers.clamp(min=0), torch.repeat_interleave(rows - 1, wide)) * step
    all_counts = torch.tensor(list(counts))
    begin = torch.cumsum(all_counts, 0) - all_counts if firsts is None else firsts
    return numbers + torch.repeat_interleave(begin, wide)


def deltas(frames: Tensor, counts: Sequence[int], firsts: Tensor | None = None) -> Tensor:
    """Slopes by regression over five frames, edges replicated (`compute_deltas(win_length=5)`): -> (N, D), utterances behind one another.

    Args:
        frames: (F, D).
        counts: frames of each utterance.
        firsts: where each begins in `frames`; None when they lie behind one another.
    """
    index = spread(counts, firsts, context=2).to(frames.device)
    padded = frames.index_select(0, index)  # two frames more on each side of each utterance
    slopes = torch.sub(padded[4:], padded[:-4]).mul_(2).add_(padded[3:-1]).sub_(padded[1:-3]).div_(10)
    # Slopes exist from the third row of an utterance to its third from last; those between two utterances mean nothing.
    wide = [count + 4 if count else 0 for count in counts]
    keep = [torch.arange(end - width, end - 4) for end, width in zip(_ends(wide), wide, strict=True) if width]
    return slopes.index_select(0, torch.cat(keep).to(frames.device)) if keep else frames.new_zeros(0, frames.shape[-1])


def _ends(counts: Sequence[int]) -> list[int]:
    total, ends = 0, []
    for count in counts:
        total += count
        ends.append(total)
    return ends
