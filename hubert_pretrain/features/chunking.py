"""Recordings of any length through a conv encoder and a context encoder in bounded memory.

Equal to the computation without chunks:
- the number of frames, always;
- the conv encoder's frames, up to rounding: pieces overlap by its window, and a norm over time
  uses the mean and variance of the whole recording.
The context encoder's frames differ in what attention sees: a chunk with its context instead of the
whole recording.

Tensor letters: B utterances, S samples, T frames, C conv channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hubert_pretrain.frames import FrameGrid


@dataclass(frozen=True)
class Chunk:
    """Frames [start, stop) are computed together; [keep_start, keep_stop) of them are used."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def plan_chunks(num_frames: int, chunk_frames: int, context_frames: int) -> list[Chunk]:
    """Chunks whose used parts cover `num_frames` frames exactly once.

    Each used part has at least `context_frames` frames of context on each side, except at the ends
    of the recording. All chunks have the same length (one tensor shape): the last one starts
    earlier instead of being shorter.
    """
    if num_frames <= chunk_frames:
        return [Chunk(0, num_frames, 0, num_frames)]
    chunks: list[Chunk] = []
    covered = 0
    while covered < num_frames:
        start = min(max(0, covered - context_frames), num_frames - chunk_frames)
        stop = start + chunk_frames
        keep_stop = num_frames if stop == num_frames else stop - context_frames
        chunks.append(Chunk(start, stop, covered, keep_stop))
        covered = keep_stop
    return chunks


@dataclass(frozen=True)
class ConvStack:
    """The layers of a conv encoder, of this package or of `transformers`."""

    layers: Sequence[Callable[[Tensor], Tensor]]
    """Each (B, C, S') -> (B, C', S'')."""
    conv: nn.Conv1d | None
    """The convolution of the first layer; None for a front end without one."""
    time_norm: nn.GroupNorm | None
    """The first layer's norm if it normalises over time, one group per channel; else None."""
    activation: Callable[[Tensor], Tensor]
    """The first layer's activation."""
    grid: FrameGrid

    def encode_pieces(self, waveform: Tensor, piece_samples: int) -> Iterator[Tensor]:
        """Frames (B, T', C) of a waveform (B, S), piece by piece, each from about `piece_samples`
        samples at most.
        """
        first = self.layers[0]
        if self.time_norm is not None:
            first = self._first_layer_with_global_norm(waveform, piece_samples)
        for piece in _pieces(waveform, self.grid, piece_samples):
            x = first(piece[:, None])
            for layer in self.layers[1:]:
                x = layer(x)
            yield x.transpose(1, 2)

    def _first_layer_with_global_norm(
        self, waveform: Tensor, piece_samples: int
    ) -> Callable[[Tensor], Tensor]:
        """The first layer, normalising with the mean and variance of the whole waveform."""
        norm = self.time_norm
        conv = self.conv
        assert norm is not None
        assert conv is not None
        grid = FrameGrid(window=conv.kernel_size[0], hop=conv.stride[0])

        # Means and variances of the pieces are merged in float64 (Chan et al. 1979): float32 sums
        # over hours of audio lose digits.
        count = 0
        mean = waveform.new_zeros(len(waveform), conv.out_channels, 1, dtype=torch.float64)
        squares = mean
        for piece in _pieces(waveform, grid, piece_samples):
            x = conv(piece[:, None])
            variance, piece_mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
            total = count + x.shape[-1]
            delta = piece_mean.double() - mean
            within = variance.double() * x.shape[-1]
            between = delta.square() * (count * x.shape[-1] / total)
            squares = squares + within + between
            mean = mean + delta * (x.shape[-1] / total)
            count = total

        # The norm as one multiplication and one addition per channel.
        scale = norm.weight[:, None] / (squares / count + norm.eps).sqrt()  # (B, C, 1)
        shift = norm.bias[:, None] - mean * scale
        return lambda x: self.activation(torch.addcmul(shift.float(), conv(x), scale.float()))


def _pieces(waveform: Tensor, grid: FrameGrid, piece_samples: int) -> Iterator[Tensor]:
    """Pieces (B, S') of a waveform (B, S) that together give each frame of a grid exactly once."""
    num_frames = grid.num_frames(waveform.shape[-1])
    step = max(1, grid.num_frames(piece_samples))
    for start in range(0, num_frames, step):
        count = min(step, num_frames - start)
        first_sample = grid.start_sample(start)
        yield waveform[:, first_sample : first_sample + grid.num_samples(count)]
