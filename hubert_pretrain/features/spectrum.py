"""Spectral features of many utterances at once: how MFCC and log-mel lay them out, and slopes over
time.

Utterances of any lengths are laid behind one another on one frame grid, so that a batch costs as
many calls as one utterance and no frame is computed twice. Tensor alphabet: S samples, F frames on
the flat grid, N frames of all utterances, D width.
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
    """Utterances (S_i,) behind one another, each beginning at a frame of one grid.

    Returns:
        The flat waveform; the first flat frame of each utterance (int64, on the CPU); how many
        frames each has. The flat grid has a few frames more, which reach from one utterance into
        the next and belong to none.
    """
    counts = [grid.num_frames(len(waveform)) for waveform in waveforms]
    hops = [max(1, -(-len(waveform) // grid.hop)) for waveform in waveforms]
    flat = waveforms[0].new_empty(sum(hops) * grid.hop + grid.window)
    position = 0
    firsts = []
    for waveform, taken in zip(waveforms, hops, strict=True):
        begin = position * grid.hop
        position = position + taken
        flat[begin : begin + len(waveform)] = waveform
        flat[begin + len(waveform) : position * grid.hop] = 0
        firsts.append(position - taken)
    flat[position * grid.hop :] = 0
    return flat, torch.tensor(firsts, dtype=torch.int64), counts


def gather_index(
    counts: Sequence[int],
    firsts: Tensor | None = None,
    *,
    context: int = 0,
    step: int = 1,
    offset: int = 0,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Which flat frames to read so that utterances with `counts` frames lie behind one another:
    int64 (sum of rows,).

    Args:
        counts: frames of each utterance.
        firsts: where each begins; None when they already lie behind one another.
        context: so many frames more on each side, the first and the last one repeated.
        step: every how many frames; 2 takes the even ones.
        offset: the first one that is taken.
        rows: how many of each utterance are taken; None for as many as there are.
    """
    taken = np.array(
        [len(range(offset, count, step)) for count in counts] if rows is None else rows,
        dtype=np.int64,
    )
    wide = np.where(taken > 0, taken + 2 * context, 0)
    numbers = np.arange(wide.sum()) - np.repeat(
        np.cumsum(wide) - wide, wide
    )  # 0, 1, 2, ... of each utterance
    if context:
        numbers = np.clip(numbers - context, 0, np.repeat(taken - 1, wide))
    begin = np.cumsum(counts) - np.asarray(counts) if firsts is None else firsts.numpy()
    return torch.from_numpy(numbers * step + np.repeat(begin + offset, wide))


def deltas(frames: Tensor, counts: Sequence[int], firsts: Tensor | None = None) -> Tensor:
    """Slopes by regression over five frames, edges replicated (`compute_deltas(win_length=5)`): ->
    (N, D), utterances behind one another.

    Args:
        frames: (F, D).
        counts: frames of each utterance.
        firsts: where each begins in `frames`; None when they lie behind one another.
    """
    index = gather_index(counts, firsts, context=2).to(frames.device)
    padded = frames.index_select(0, index)  # two frames more on each side of each utterance
    slopes = (
        torch.sub(padded[4:], padded[:-4]).mul_(2).add_(padded[3:-1]).sub_(padded[1:-3]).div_(10)
    )
    # Slopes exist from the third row of an utterance to its third from last; those between two
    # utterances mean nothing.
    wide = [count + 4 if count else 0 for count in counts]
    kept = gather_index(counts, torch.from_numpy(np.cumsum(wide) - wide))
    return (
        slopes.index_select(0, kept.to(frames.device))
        if len(kept)
        else frames.new_zeros(0, frames.shape[-1])
    )
