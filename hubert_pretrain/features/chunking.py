"""Recordings of any length through a conv encoder and a context encoder in bounded memory.

What is equal to the unchunked computation: the number of frames, always; the conv encoder's frames,
up to rounding, because pieces overlap by its window and a norm over time takes the mean and
variance of the *whole* recording; the context encoder's frames up to what attention sees: a chunk
with its context instead of everything. Tensor alphabet: B utterances, S samples, T frames, C conv
channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hubert_pretrain.frames import FrameGrid


@dataclass(frozen=True)
class Chunk:
    """Frames [start, stop) are computed together, of which [keep_start, keep_stop) are kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def chunks(num_frames: int, chunk_frames: int, context_frames: int) -> list[Chunk]:
    """Covers `num_frames` frames once with chunks that see at least `context_frames` more on each
    side (except at the ends).

    All chunks are equally long (one shape): the last one starts earlier instead of being shorter.
    """
    if num_frames <= chunk_frames:
        return [Chunk(0, num_frames, 0, num_frames)]
    plan: list[Chunk] = []
    kept = 0
    while kept < num_frames:
        start = min(max(0, kept - context_frames), num_frames - chunk_frames)
        stop = start + chunk_frames
        keep_stop = num_frames if stop == num_frames else stop - context_frames
        plan.append(Chunk(start, stop, kept, keep_stop))
        kept = keep_stop
    return plan


@dataclass(frozen=True)
class ConvStack:
    """A conv encoder taken apart, whoever wrote it."""

    layers: Sequence[Callable[[Tensor], Tensor]]
    """Each (B, C, S') -> (B, C', S'')."""
    conv: nn.Conv1d | None
    """The convolution of the first layer, None where there is none,"""
    time_norm: nn.GroupNorm | None
    """its norm where that is one over time, one group per channel,"""
    activation: Callable[[Tensor], Tensor]
    """and its activation."""
    grid: FrameGrid

    def frames(self, waveform: Tensor, piece_samples: int) -> Iterator[Tensor]:
        """The frames (B, T', C) of (B, S) piece by piece, each from at most about `piece_samples`
        samples.
        """
        first = self.layers[0] if self.time_norm is None else self._normed(waveform, piece_samples)
        for piece in _pieces(waveform, self.grid, piece_samples):
            x = first(piece[:, None])
            for layer in self.layers[1:]:
                x = layer(x)
            yield x.transpose(1, 2)

    def _normed(self, waveform: Tensor, piece_samples: int) -> Callable[[Tensor], Tensor]:
        """The first layer with the norm's mean and variance of the whole waveform."""
        norm = self.time_norm
        conv = self.conv
        assert norm is not None
        assert conv is not None
        grid = FrameGrid(window=conv.kernel_size[0], hop=conv.stride[0])
        zero = waveform.new_zeros(len(waveform), conv.out_channels, 1, dtype=torch.float64)
        count = 0
        mean = zero
        squares = zero
        for piece in _pieces(waveform, grid, piece_samples):
            # Means and variances of pieces are joined in float64 (Chan et al. 1979): float32 sums
            # over hours of audio lose digits.
            x = conv(piece[:, None])
            variance, piece_mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
            total = count + x.shape[-1]
            delta = piece_mean.double() - mean
            squares = (
                squares
                + variance.double() * x.shape[-1]
                + delta.square() * (count * x.shape[-1] / total)
            )
            mean = mean + delta * (x.shape[-1] / total)
            count = total
        scale = norm.weight[:, None] / (squares / count + norm.eps).sqrt()  # (B, C, 1)
        shift = norm.bias[:, None] - mean * scale
        return lambda x: self.activation(torch.addcmul(shift.float(), conv(x), scale.float()))


def _pieces(waveform: Tensor, grid: FrameGrid, piece_samples: int) -> Iterator[Tensor]:
    """Stretches (B, S') of a waveform (B, S) that together give each frame of a grid exactly
    once.
    """
    num_frames = grid.num_frames(waveform.shape[-1])
    step = max(1, grid.num_frames(piece_samples))
    for start in range(0, num_frames, step):
        count = min(step, num_frames - start)
        yield waveform[
            :, grid.start_sample(start) : grid.start_sample(start) + grid.num_samples(count)
        ]
