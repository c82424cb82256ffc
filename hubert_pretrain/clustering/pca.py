"""PCA and whitening of frames before clustering, as an affine map that is stored in the codebook.

Tensor letters: N frames, D width of a frame, d number of components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hubert_pretrain.errors import ConfigError, DataError

MIN_VARIANCE_SHARE = 1e-7
"""Directions with less than this share of the largest variance contain rounding errors only:
whitening would scale noise up to full size."""
MIN_SQUARE_SHARE = 1e-13
"""A variance below this share of the largest squared mean is the rounding error of float32: the
frames do not vary."""
BLOCK_FRAMES = 1 << 14
"""Frames that are held in float64 at once."""


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
        """The same transform on a device."""
        return Transform(self.mean.to(device), self.matrix.to(device))


def fit_pca(frames: Tensor, *, dims: int = 0, whiten: bool = False) -> Transform:
    """Principal components of frames (N, D), by descending variance.

    Args:
        frames: estimate the components; they are converted to float64 block by block.
        dims: number of components; 0: all with more variance than rounding errors.
        whiten: scale each component to variance 1.

    Raises:
        ConfigError: the frames do not have `dims` components.
        DataError: the frames are all the same.
    """
    # Mean and covariance in float64.
    blocks = frames.split(BLOCK_FRAMES)
    mean = torch.stack([block.double().sum(0) for block in blocks]).sum(0) / len(frames)  # (D,)
    covariance = frames.new_zeros(frames.shape[1], frames.shape[1], dtype=torch.float64)
    for block in blocks:
        centred = block.double() - mean
        covariance += centred.T @ centred

    # Eigenvectors, largest variance first (eigh returns ascending ones).
    variances, vectors = torch.linalg.eigh(covariance / len(frames))  # (D,), (D, D)
    variances = variances.flip(0)
    vectors = vectors.flip(1)
    if float(variances[0]) <= MIN_SQUARE_SHARE * float(mean.square().max()):
        raise DataError(
            f"clustering.pca_dims and clustering.whiten: all {len(frames)} frames of the sample "
            "are the same, as those of silence are; check the audio, or leave both out"
        )
    available = int((variances > MIN_VARIANCE_SHARE * variances[0]).sum())
    if dims > available:
        raise ConfigError(
            f"clustering.pca_dims={dims}, but the frames vary in only {available} of their "
            f"{frames.shape[1]} dimensions; lower it"
        )
    num_components = dims or available
    vectors = vectors[:, :num_components]

    # Fix the sign of each eigenvector (its largest entry is positive), so results do not depend on
    # LAPACK.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * largest.sign()
    if whiten:
        vectors = vectors / variances[:num_components].sqrt()
    return Transform(mean.float(), vectors.float().contiguous())
