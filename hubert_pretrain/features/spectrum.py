"""Packing for spectral features: utterances of any lengths concatenated on one frame grid, and
slopes over time (deltas).

A batch then costs as many calls as one utterance, and no frame is computed twice.

Tensor letters: S samples, F frames of the packed waveform, N frames of all utterances, D width of a
frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hubert_pretrain.frames import FrameGrid


def pack_utterances(
    waveforms: Sequence[Tensor], grid: FrameGrid
) -> tuple[Tensor, Tensor, list[int]]:
    """Concatenates utterances (S_i,) such that each begins at a frame of one grid.

    Returns:
        The packed waveform; the first packed frame of each utterance (int64, on the CPU); the
        number of frames of each utterance. The packed grid has a few more frames, which reach from
        one utterance into the next and belong to none.
    """
    counts = [grid.num_frames(len(waveform)) for waveform in waveforms]
    # Each utterance is zero-padded to a whole number of hops, one at least.
    hops = [max(1, -(-len(waveform) // grid.hop)) for waveform in waveforms]
    packed = waveforms[0].new_empty(sum(hops) * grid.hop + grid.window)
    firsts = []
    position = 0
    for waveform, num_hops in zip(waveforms, hops, strict=True):
        firsts.append(position)
        begin = position * grid.hop
        position += num_hops
        packed[begin : begin + len(waveform)] = waveform
        packed[begin + len(waveform) : position * grid.hop] = 0
    packed[position * grid.hop :] = 0
    return packed, torch.tensor(firsts, dtype=torch.int64), counts


def gather_index(
    counts: Sequence[int],
    firsts: Tensor | None = None,
    *,
    context: int = 0,
    step: int = 1,
    offset: int = 0,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Indices of packed frames that put the frames of the utterances directly behind one another:
    int64 (sum of rows,).

    Args:
        counts: frames of each utterance.
        firsts: first packed frame of each utterance; None when nothing lies between them.
        context: number of extra frames on each side of an utterance, repeating its first and its
            last frame.
        step: distance of the selected frames; 2 takes every second one.
        offset: first selected frame of each utterance.
        rows: number of frames to select of each utterance; None for as many as there are.
    """
    if rows is None:
        rows = [len(range(offset, count, step)) for count in counts]
    selected = np.array(rows, dtype=np.int64)  # per utterance, without context
    widths = np.where(selected > 0, selected + 2 * context, 0)  # per utterance, with context

    # Number of each selected frame within its utterance: 0, 1, 2, ... 0, 1, 2, ...
    numbers = np.arange(widths.sum()) - np.repeat(np.cumsum(widths) - widths, widths)
    if context:
        numbers = np.clip(numbers - context, 0, np.repeat(selected - 1, widths))

    begin = np.cumsum(counts) - np.asarray(counts) if firsts is None else firsts.numpy()
    return torch.from_numpy(numbers * step + np.repeat(begin + offset, widths))


def deltas(frames: Tensor, counts: Sequence[int], firsts: Tensor | None = None) -> Tensor:
    """Slopes over time by regression over five frames, with the edge frames repeated: (F, D) ->
    (N, D).

    The same as torchaudio's `compute_deltas(win_length=5)`, for several utterances at once.

    Args:
        frames: (F, D).
        counts: frames of each utterance.
        firsts: first frame of each utterance in `frames`; None when nothing lies between them.
    """
    # Two repeated frames on each side of each utterance.
    index = gather_index(counts, firsts, context=2).to(frames.device)
    padded = frames.index_select(0, index)
    # Regression over x[-2] ... x[2]: (2 (x[2] - x[-2]) + x[1] - x[-1]) / 10, in place.
    slopes = torch.sub(padded[4:], padded[:-4]).mul_(2)
    slopes = slopes.add_(padded[3:-1]).sub_(padded[1:-3]).div_(10)
    # Row i of `slopes` belongs to row i + 2 of `padded`. Rows that mix two utterances are dropped.
    widths = [count + 4 if count else 0 for count in counts]
    rows = gather_index(counts, torch.from_numpy(np.cumsum(widths) - widths))
    if len(rows) == 0:
        return frames.new_zeros(0, frames.shape[-1])
    return slopes.index_select(0, rows.to(frames.device))
