from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from hubert_pretrain.clustering.pca import fit_pca
from hubert_pretrain.errors import ConfigError, DataError

FRAMES = (
    np.random.default_rng(0).normal(size=(4000, 39)).astype(np.float32)
    * np.linspace(9, 1, 39, dtype=np.float32)
    + 20
)


def test_principal_components_are_those_of_scikit_learn() -> None:
    transform = fit_pca(torch.from_numpy(FRAMES), dims=6, whiten=True)
    reference = PCA(6, whiten=True).fit(FRAMES)
    ours = transform(torch.from_numpy(FRAMES)).numpy()
    theirs = reference.transform(FRAMES)
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours * signs, theirs, atol=2e-3)
    with pytest.raises(ConfigError, match="vary in only 2 of their 39 dimensions"):
        fit_pca(torch.from_numpy(FRAMES) * (torch.arange(39) < 2), dims=6)


@pytest.mark.parametrize("value", [0.0, -15.942385, 1e20])
@pytest.mark.parametrize("dims", [0, 3])
def test_frames_that_do_not_vary_are_refused(value: float, dims: int) -> None:
    """MFCC of digital silence."""
    with pytest.raises(DataError, match="all 3000 frames of the sample are the same, as those of"):
        fit_pca(torch.full((3000, 39), value), dims=dims, whiten=True)


def test_one_loud_frame_is_a_direction() -> None:
    frames = torch.full((3000, 39), 7.0)
    frames[5, 3] = 8
    assert fit_pca(frames, whiten=True).matrix.shape == (39, 1)
