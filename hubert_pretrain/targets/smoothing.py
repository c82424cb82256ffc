"""Smoothed units: the sequence that is near the centroids and switches seldom.

Raw units follow single frames, and switch far more often than phones do. Smoothing takes, of all
sequences z of clusters, the one with the smallest

    sum over t of |x_t - c_z(t)|^2  +  penalty * scale * (number of switches),

by dynamic programming, after Kamper and van Niekerk 2021 ("Towards unsupervised phone and word
segmentation using self-supervised vector-quantized neural networks"), with a penalty for each
switch. `scale` is the mean squared distance of a frame to its nearest centroid, so that a penalty
means the same for any features; 0 gives the raw units.

Letters: T frames, D width of a frame, K clusters.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.errors import ConfigError

FRAMES_AT_ONCE = 4096
"""Frames whose distances are computed together."""


def smooth(costs: Tensor, penalty: float) -> Tensor:
    """The best sequence: costs (T, K) of each frame in each cluster -> ids (T,).

    Args:
        costs: any finite numbers; smaller is nearer.
        penalty: of each switch, in the unit of the costs, 0 or more.

    A switch to the best cluster of the frame before costs as much as any other, so a step needs K
    operations, not K^2. Among equal sequences the one that stays longer, then the smaller id.
    """
    check_penalty(penalty)
    num_frames, num_clusters = costs.shape
    if num_frames == 0:
        return torch.zeros(0, dtype=torch.int64)
    # NumPy, whose calls cost less than torch's: K numbers are few, and a step needs four calls.
    added = costs.double().cpu().numpy()
    total = added[0].copy()  # (K,) of the best sequence that ends in each cluster
    stays = np.ones((num_frames, num_clusters), dtype=np.bool_)
    origins = np.zeros(num_frames, dtype=np.int64)
    for t in range(1, num_frames):
        origins[t] = total.argmin()
        switching = total[origins[t]] + penalty
        np.less_equal(total, switching, out=stays[t])
        np.minimum(total, switching, out=total)
        total += added[t]
    ids = np.zeros(num_frames, dtype=np.int64)
    ids[-1] = total.argmin()
    for t in range(num_frames - 1, 0, -1):
        ids[t - 1] = ids[t] if stays[t, ids[t]] else origins[t]
    return torch.from_numpy(ids)


def smoothed_units(codebook: Codebook, frames: Tensor, penalty: float) -> Tensor:
    """Units (T,) of frames (T, D): `penalty` times the mean squared distance to the nearest
    centroid is what a switch costs.
    """
    check_penalty(penalty)
    if penalty == 0 or len(frames) < 2:
        return codebook.assign(frames).cpu()
    costs = squared_distances(codebook, frames)
    scale = float(costs.min(dim=1).values.mean())
    return smooth(costs, penalty * scale)


def squared_distances(codebook: Codebook, frames: Tensor) -> Tensor:
    """Distances (T, K) of frames (T, D) to the centroids, in the space of the centroids."""
    parts = []
    for block in frames.split(FRAMES_AT_ONCE):
        projected = codebook.project(block).double()
        parts.append(torch.cdist(projected, codebook.centroids.double()).square().cpu())
    return torch.cat(parts)


def smoothable(codebooks: CodebookSet) -> Codebook:
    """The codebook whose ids are smoothed. Raises ConfigError where there are several."""
    if not codebooks.is_plain:
        raise ConfigError(
            f"smoothing needs one codebook over all columns, and there are "
            f"{codebooks.num_codebooks}; leave it out"
        )
    return codebooks.parts[0].codebook


def check_penalty(penalty: float) -> None:
    """Raises ConfigError for a penalty that cannot be."""
    if not 0 <= penalty < float("inf"):
        raise ConfigError(f"switch penalty {penalty}: expected a number of 0 or more")
