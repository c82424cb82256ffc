"""An affine map that frames go through before they are clustered: PCA, whitening. Kept in the
codebook that was fitted behind it.

Tensor alphabet: N frames, D width of a frame, d width behind the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hubert_pretrain.errors import ConfigError

SMALLEST_SHARE = 1e-7
"""Directions with less than this share of the largest variance hold rounding only: whitening them
would blow noise up to full size.
"""


@dataclass(frozen=True, eq=False)
class Transform:
    """x -> (x - mean) @ matrix."""

    mean: Tensor
    """(D,) float32."""
    matrix: Tensor
    """(D, d) float32."""

    def __call__(self, frames: Tensor) -> Tensor:
        """(..., D) -> (..., d)."""
        return (frames - self.mean) @ self.matrix

    def to(self, device: torch.device | str) -> Transform:
        """The same on a device."""
        return Transform(self.mean.to(device), self.matrix.to(device))


def fit_transform(frames: Tensor, *, dims: int = 0, whiten: bool = False) -> Transform | None:
    """The principal components of frames (N, D), the largest first; None when neither of the two is
    asked for.

    Args:
        frames: what the components are estimated from; all of it is held in float64 only once, as a
        (D, D) matrix. dims: how many components are kept; 0: all that hold more than rounding.
        whiten: scale each component to variance 1.

    Raises ConfigError when the frames do not have so many components.
    """
    if not dims and not whiten:
        return None
    mean = torch.stack([part.double().sum(0) for part in frames.split(1 << 14)]).sum(0) / len(
        frames
    )
    covariance = frames.new_zeros(frames.shape[1], frames.shape[1], dtype=torch.float64)
    for part in frames.split(1 << 14):
        centred = part.double() - mean
        covariance += centred.T @ centred
    variances, vectors = torch.linalg.eigh(covariance / len(frames))  # ascending
    variances = variances.flip(0)
    vectors = vectors.flip(1)
    useful = int((variances > SMALLEST_SHARE * variances[0]).sum())
    if dims > useful:
        raise ConfigError(
            f"clustering.pca_dims={dims}, but the frames vary in only {useful} of their {frames.shape[1]} dimensions; lower it"
        )
    kept = dims or useful
    # The sign of an eigenvector is the library's whim: the largest entry is made positive.
    vectors = vectors[:, :kept]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    if whiten:
        vectors = vectors / variances[:kept].sqrt()
    return Transform(mean.float(), vectors.float().contiguous())
