from __future__ import annotations

import numpy as np
import pytest
import torch

from hubert_pretrain.clustering import kmeans
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.frames import MODEL_GRID


def blobs(count: int = 3000, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(scale=10, size=(5, 4))
    return (centres[generator.integers(0, 5, count)] + generator.normal(size=(count, 4))).astype(np.float32)


def test_the_same_seed_gives_the_same_codebook() -> None:
    first, again, other = (kmeans.fit(blobs(), n_clusters=8, restarts=2, seed=seed) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    assert first.shape == (8, 4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_finds_separate_clusters() -> None:
    frames = blobs()
    codebook = Codebook(torch.from_numpy(kmeans.fit(frames, n_clusters=5)), {}, MODEL_GRID)
    assert kmeans.inertia(frames, codebook) < 1.1 * 4  # four dimensions of unit variance


def test_inertia_is_the_mean_squared_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = blobs(1000)
    centroids = kmeans.fit(frames, n_clusters=6, restarts=1)
    monkeypatch.setattr(kmeans, "FRAMES_AT_ONCE", 300)
    expected = ((frames[:, None] - centroids[None]) ** 2).sum(-1).min(1).mean()
    assert kmeans.inertia(frames, Codebook(torch.from_numpy(centroids), {}, MODEL_GRID)) == pytest.approx(expected, rel=1e-5)


def test_a_memory_map_gives_the_same(tmp_path) -> None:  # type: ignore[no-untyped-def]
    np.save(tmp_path / "frames.npy", blobs())
    mapped = np.load(tmp_path / "frames.npy", mmap_mode="r")
    assert np.array_equal(kmeans.fit(mapped, n_clusters=8, restarts=2), kmeans.fit(blobs(), n_clusters=8, restarts=2))


def test_fewer_frames_than_clusters_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"n_clusters=100 needs at least as many frames, the sample has 40; lower"):
        kmeans.fit(blobs(40), n_clusters=100)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_frames_that_are_not_numbers_are_refused(bad: float) -> None:
    frames = blobs()
    frames[17, 2] = bad
    with pytest.raises(DataError, match="frame 17 of 3000 holds NaN or infinity"):
        kmeans.fit(frames, n_clusters=4)
