"""Loss of Spin (Chang et al. 2023, arXiv:2305.11072): each of two views of an utterance predicts
the codewords that the other one is assigned to, under an equal partition (SwAV, arXiv:2006.09882).

N frames, K codewords.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hubert_pretrain import distributed


class SwappedPrediction(NamedTuple):
    """Loss and counts of a micro-batch."""

    loss: Tensor
    """Sum over the N frames, in nats: -(q2 log p1 + q1 log p2) / 2."""
    agreeing: Tensor
    """Number of frames whose nearest codeword is the same in both views."""
    codewords: Tensor
    """(2 N,) nearest codeword of each frame of the first view, then of the second."""


def swapped_prediction(
    first: Tensor, second: Tensor, *, temperature: float, epsilon: float, iterations: int
) -> SwappedPrediction:
    """The loss of two views of the same frames.

    Args:
        first: (N, K) cosines divided by the temperature, of one view.
        second: of the other.
        temperature: by which they were divided.
        epsilon: see `equal_partition`.
        iterations: see `equal_partition`.
    """
    targets_of_first, targets_of_second = (
        equal_partition(each.detach() * temperature, epsilon=epsilon, iterations=iterations)
        for each in (first, second)
    )
    likelihood = (targets_of_second * first.log_softmax(-1)).sum() + (
        targets_of_first * second.log_softmax(-1)
    ).sum()
    nearest = torch.cat([first.argmax(-1), second.argmax(-1)])
    agreeing = (nearest[: len(first)] == nearest[len(first) :]).sum()
    return SwappedPrediction(-likelihood / 2, agreeing, nearest)


@torch.no_grad()
def equal_partition(cosines: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Targets (N, K): every frame spreads 1 over the codewords, and every codeword gets about as
    much as any other, of the frames of all ranks together.

    Sinkhorn-Knopp on exp(cosine / epsilon): columns and rows in turn are divided by their sums.
    Every rank must call it, equally often.

    Args:
        cosines: (N, K) of this rank's frames.
        epsilon: the smaller, the nearer to one codeword for each frame.
        iterations: rounds.
    """
    # In double precision, and below 1: no exponential leaves the range for epsilon above 0.003.
    shares = ((cosines.double() - 1) / epsilon).exp()
    least = torch.finfo(shares.dtype).tiny
    for _ in range(iterations):
        shares /= distributed.sum_over_ranks(shares.sum(0)).clamp_min(least)
        shares /= shares.sum(1, keepdim=True).clamp_min(least)
    return shares.to(cosines.dtype)
