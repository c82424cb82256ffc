"""The memory budget of clustering."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hubert_pretrain.clustering import memory
from hubert_pretrain.clustering.engines.frame_summary import summarise
from hubert_pretrain.clustering.fit import CodebookFitter, parse_specs
from hubert_pretrain.clustering.frame_source import FrameFile, MappedFrames, RankFrames
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.clustering.memory import EngineMemory, resident_bytes, within_budget
from hubert_pretrain.clustering.pca import fit_pca
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.seeds import derive

FRAMES = np.random.default_rng(0).normal(size=(2000, 4)).astype(np.float32)
MB = 10**6


def frame_file(folder: Path, frames: np.ndarray = FRAMES) -> FrameFile:
    file = FrameFile(folder / "frames", frames.shape)
    file.write(0, frames)
    return file


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_pages_of_a_file_are_given_back_at_the_budget(tmp_path: Path) -> None:
    frames = np.zeros((50, 1 << 20), dtype=np.float32)  # 200 MB
    file = frame_file(tmp_path, frames)
    del frames
    before = resident_bytes()
    budget = before + memory.WORKING_BYTES // 2 + 20 * MB
    with within_budget(file, budget, tmp_path, EngineMemory()) as array:
        assert float(array.sum()) == 0.0
        limit = time.monotonic() + 60
        while resident_bytes() > before + 100 * MB and time.monotonic() < limit:
            time.sleep(0.01)
        assert resident_bytes() <= before + 100 * MB, "200 MB were read"
        assert float(array[-1, -1]) == 0.0, "and can be read again"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_that_was_freed_is_free() -> None:
    """Small blocks stay with the C library while a later one is in use."""
    budget = 10**12
    before = memory.free_bytes(budget)
    blocks = [np.ones(12_000) for _ in range(3000)]  # 288 MB
    last = blocks[-1].copy()
    assert memory.free_bytes(budget) < before - 250 * MB
    del blocks
    assert memory.free_bytes(budget) > before - 50 * MB
    assert last.all()


@pytest.mark.parametrize("fits", [True, False])
def test_frames_of_a_function_that_do_not_fit_lie_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda budget: 10**9 if fits else 0)
    frames = MappedFrames(frame_file(tmp_path), lambda chunk: 2 * chunk[:, :3], 3)
    with within_budget(frames, 10**9, tmp_path, EngineMemory()) as array:
        np.testing.assert_array_equal(array, 2 * FRAMES[:, :3])
        assert (tmp_path / memory.MAPPED).exists() != fits
    assert not (tmp_path / memory.MAPPED).exists()


@pytest.mark.parametrize("engine", ["minibatch", "faiss"])
def test_the_budget_does_not_change_the_centroids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    found = []
    for frames, free in ((FRAMES, 10**9), (frame_file(tmp_path), 0)):
        monkeypatch.setattr(memory, "free_bytes", lambda budget, free=free: free)
        estimator = KMeans(engine, 5, restarts=1, max_memory_bytes=10**9)
        fitter = CodebookFitter(estimator, 1, pca_dims=2, folder=tmp_path)
        specs = parse_specs([], dim=4, n_clusters=5)
        shard = RankFrames.whole(frames)
        found.append(fitter.fit(shard, specs, features={}, grid=MODEL_GRID).fingerprint)
    assert found[0] == found[1]


def test_what_an_engine_needs_is_counted_and_too_little_is_refused() -> None:
    engine = EngineMemory(row_bytes=32)
    large = resident_bytes() * 4 + 10**10
    free = engine.frame_bytes(large, 10**6, 39)
    assert 4 * 39 * 10**6 < free < large
    assert engine.frame_bytes(large, 2 * 10**8, 39) == 0, "to a file"
    with pytest.raises(
        ConfigError,
        match=r"clustering.max_memory_gb=0.1: the process holds \d.\d\d GB before it has any "
        r"frames, and 100 frames need .* GB beside those; set it to at least [\d.]+, or use",
    ) as refused:
        engine.frame_bytes(100 * MB, 100, 39)
    enough = float(str(refused.value).split("at least ")[1].split(",")[0])
    assert engine.frame_bytes(int(1e9 * (enough + 0.1)), 100, 39) >= 100 * 39 * 4
    with pytest.raises(ConfigError, match="10000000000 frames need 32"):
        engine.frame_bytes(large, 10**10, 39)


def test_the_frames_of_a_pca_keep_to_the_budget() -> None:
    shard = RankFrames.whole(FRAMES)
    fitter = CodebookFitter(KMeans("torch", 3, max_sample_bytes=4 * 4 * 50), 1, pca_dims=2)
    codebook = (
        fitter.fit(shard, parse_specs([], dim=4, n_clusters=3), features={}, grid=MODEL_GRID)
        .parts[0]
        .codebook
    )
    few = summarise(shard, sample_frames=50, seed=derive(fitter.seed_of("all"), "transform"))
    assert codebook.transform is not None
    expected = fit_pca(few.sample, dims=2).matrix
    torch.testing.assert_close(codebook.transform.matrix, expected, rtol=0, atol=0)
