from __future__ import annotations

import re
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans as Reference
from sklearn.cluster import MiniBatchKMeans

from hubert_pretrain import progress
from hubert_pretrain.clustering.engines.faiss import Faiss
from hubert_pretrain.clustering.frame_source import FrameFile, MappedFrames
from hubert_pretrain.clustering.kmeans import ENGINES, KMeans
from hubert_pretrain.config.schema import ClusteringConfig
from hubert_pretrain.errors import ConfigError, DataError

FULL = ["torch", "faiss"]
every_engine = pytest.mark.parametrize("engine", list(ENGINES))
full_engines = pytest.mark.parametrize("engine", FULL)


def blobs(count: int = 3000, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(scale=10, size=(5, 4))
    return (centres[generator.integers(0, 5, count)] + generator.normal(size=(count, 4))).astype(
        np.float32
    )


@every_engine
def test_the_same_seed_gives_the_same_centroids(engine: str) -> None:
    first, again, other = (
        KMeans(engine, 8, restarts=2, seed=seed).fit(blobs()).cluster_centers_ for seed in (1, 1, 2)
    )
    assert first.dtype == np.float32
    assert first.shape == (8, 4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@every_engine
def test_it_finds_separate_clusters_and_measures_them(engine: str) -> None:
    frames = blobs()
    found = KMeans(engine, 5).fit(frames)
    assert found.inertia_ / len(frames) < 1.1 * 4  # four dimensions of unit variance
    distances = ((frames[:, None] - found.cluster_centers_[None]) ** 2).sum(-1)
    assert found.inertia_ == pytest.approx(distances.min(1).sum(), rel=1e-5)
    assert found.score(frames) == -found.inertia_
    assert np.array_equal(found.predict(frames), distances.argmin(1))
    assert np.array_equal(found.counts_, np.bincount(distances.argmin(1), minlength=5))


@full_engines
@pytest.mark.parametrize("seed", range(3))
def test_full_batches_are_as_good_as_those_of_scikit_learn(engine: str, seed: int) -> None:
    frames = np.random.default_rng(seed).normal(size=(9000, 6)).astype(np.float32) * 30 + 100
    reference = Reference(20, n_init=3, random_state=seed).fit(frames)
    assert (
        KMeans(engine, 20, restarts=3, seed=seed).fit(frames).inertia_ <= 1.01 * reference.inertia_
    )


@full_engines
def test_at_the_end_every_centroid_is_the_mean_of_its_frames(engine: str) -> None:
    frames = blobs(20_000, seed=3)
    found = KMeans(engine, 12, restarts=1).fit(frames)
    ids = found.predict(frames)
    means = np.stack([frames[ids == cluster].mean(0, dtype=np.float64) for cluster in range(12)])
    np.testing.assert_allclose(found.cluster_centers_, means, rtol=1e-4, atol=1e-3)


def test_a_tolerance_stops_early() -> None:
    frames = np.random.default_rng(0).normal(size=(30_000, 8)).astype(np.float32)
    early, late = (
        KMeans("torch", 30, restarts=1, tolerance=tolerance).fit(frames)
        for tolerance in (1e-2, 0.0)
    )
    assert early.n_iter_ < late.n_iter_
    assert late.inertia_ < early.inertia_ < 1.05 * late.inertia_
    assert KMeans("torch", 30, restarts=1, max_iterations=2).fit(frames).n_iter_ == 2


@every_engine
def test_memory_maps_and_files_give_the_same(engine: str, tmp_path: Path) -> None:
    frames = blobs(9_000)
    np.save(tmp_path / "frames.npy", frames)
    file = FrameFile(tmp_path / "frames", frames.shape)  # type: ignore[arg-type]
    file.write(5000, frames[5000:])
    file.write(0, frames[:5000])
    expected = KMeans(engine, 8, restarts=2).fit(frames).cluster_centers_
    for source in (
        np.load(tmp_path / "frames.npy", mmap_mode="r"),
        file,
        MappedFrames(file, lambda x: x, 4),
    ):
        assert np.array_equal(KMeans(engine, 8, restarts=2).fit(source).cluster_centers_, expected)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int) -> None:
    frames = np.random.default_rng(0).normal(size=(70_000, 8)).astype(np.float32)
    expected = KMeans("torch", 30, restarts=1, max_iterations=10).fit(frames).cluster_centers_
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = KMeans("torch", 30, restarts=1, max_iterations=10).fit(frames).cluster_centers_
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found, expected)


@full_engines
def test_cosine_clusters(engine: str) -> None:
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    frames = directions[generator.integers(0, 6, 5000)] + 0.05 * generator.normal(size=(5000, 6))
    frames = (frames / np.linalg.norm(frames, axis=1, keepdims=True)).astype(np.float32)
    centroids = KMeans(engine, 6, spherical=True).fit(frames).cluster_centers_
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, rtol=1e-5)
    assert np.allclose((centroids @ directions.T).max(0), 1, atol=0.01)


def test_an_empty_cluster_is_reseeded_where_frames_are_far_from_their_centroids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hubert_pretrain.clustering.engines import lloyd

    frames = blobs(2000)
    nowhere = torch.full((1, 4), 1e4)
    monkeypatch.setattr(
        lloyd.Lloyd,
        "initial_centroids",
        lambda self, summary, device: torch.cat([summary.sample[:7], nowhere]),
    )
    found = KMeans("torch", 8).fit(frames)
    assert found.reseeded_ >= 1
    assert (found.counts_ > 0).all()
    assert found.inertia_ <= 1.2 * Reference(8, n_init=5, random_state=0).fit(frames).inertia_


@full_engines
def test_more_clusters_than_different_frames_leaves_dead_ones_and_ends(engine: str) -> None:
    frames = np.repeat(blobs(6), 50, axis=0)
    found = KMeans(engine, 10, restarts=2).fit(frames)
    assert np.isfinite(found.cluster_centers_).all()
    assert (found.counts_ == 0).sum() >= 4
    assert found.inertia_ < 1e-5 * np.square(frames).sum()


def test_many_equal_frames_leave_no_empty_cluster() -> None:
    """Digital silence gives thousands of equal frames: splitting the most frequent cluster would go
    on forever.
    """
    frames = np.concatenate([blobs(3000), np.zeros((20_000, 4), np.float32)])
    found = KMeans("torch", 12, restarts=2).fit(frames)
    assert (found.counts_ > 0).all()


def test_an_interrupted_fit_goes_on_and_ends_with_the_same_centroids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubert_pretrain.clustering.engines import lloyd

    frames = np.random.default_rng(0).normal(size=(30_000, 8)).astype(np.float32)
    estimator = KMeans("torch", 30, restarts=1, max_iterations=12)
    expected = estimator.fit(frames).cluster_centers_
    saved = []
    save = lloyd.save_state

    def save_and_die(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        saved.append(arguments)
        if len(saved) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lloyd, "save_state", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(frames, state_path=tmp_path / "state")
    passes = 0
    count = lloyd.cluster_statistics

    def counted(*arguments: object) -> object:
        nonlocal passes
        passes += 1
        return count(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(lloyd, "cluster_statistics", counted)
    assert np.array_equal(
        estimator.fit(frames, state_path=tmp_path / "state").cluster_centers_, expected
    )
    assert passes == 7, "it goes on where it was"
    (tmp_path / "state").write_bytes(b"cut")
    assert np.array_equal(
        estimator.fit(frames, state_path=tmp_path / "state").cluster_centers_, expected
    )
    other = KMeans("torch", 30, restarts=1, max_iterations=12, seed=1)
    assert np.array_equal(
        other.fit(frames, state_path=tmp_path / "state").cluster_centers_,
        other.fit(frames).cluster_centers_,
    )


def test_the_defaults_are_those_of_a_recipe() -> None:
    config = ClusteringConfig(n_clusters=100)
    found = KMeans.of(config, device="cpu")
    assert found == KMeans(max_sample_bytes=10**9, max_memory_bytes=4 * 10**9)


def test_it_is_an_estimator() -> None:
    estimator = KMeans("torch", 7, seed=3)
    assert clone(estimator) == estimator
    assert estimator.set_params(n_clusters=9).get_params()["n_clusters"] == 9
    with pytest.raises(
        ConfigError, match=r"no setting 'n_cluster' \(did you mean 'n_clusters'\?\)"
    ):
        estimator.set_params(n_cluster=9)


@every_engine
def test_fewer_frames_than_clusters_is_refused(engine: str) -> None:
    with pytest.raises(
        ConfigError, match=r"n_clusters=100 needs at least as many frames, the sample has 40; lower"
    ):
        KMeans(engine, 100).fit(blobs(40))


@every_engine
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_frames_that_are_not_numbers_are_refused(engine: str, bad: float) -> None:
    frames = blobs(20_000)
    frames[9017, 2] = bad
    frames[19_000] = bad
    with pytest.raises(DataError, match="frame 9017 of 20000 holds NaN or infinity"):
        KMeans(engine, 4).fit(frames)


def test_unknown_engines_and_unsupported_settings_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"engine='torhc': expected one of .*did you mean 'torch'"
    ):
        KMeans("torhc").fit(blobs(200))
    with pytest.raises(ConfigError, match=r"spherical needs clustering\.engine=torch or faiss"):
        KMeans("minibatch", 4, spherical=True).fit(blobs(200))


def test_long_passes_report_their_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hubert_pretrain.progress.LOG_EVERY_SECONDS", 0.0)
    KMeans("torch", 4, restarts=1, max_iterations=2).fit(blobs(10_000))
    lines = capsys.readouterr().err.splitlines()
    for text in (
        r"k-means, first pass: 1 of 2, ",
        r"k-means, sample of 1,024 frames, chunks: 3 of at most 30, .* left, pass 3 of at most 30, "
        r"inertia \S+$",
        r"k-means, chunks: 2 of at most 4, .* left, pass 1 of at most 2$",
        r"k-means, chunks: 4 of at most 4, .* left, pass 2 of at most 2, inertia \S+$",
        r"k-means, inertia: 2 of 2, ",
    ):
        assert any(re.match(text, line) for line in lines), lines
    assert not any("pass 3 of at most 2" in line for line in lines)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_passes_of_faiss_one_by_one_give_the_bits_of_one_call(
    spherical: bool, tolerance: float
) -> None:
    """The start has empty clusters, which faiss fills by splitting others."""
    frames = blobs(4000)
    initial = np.concatenate([frames[:20], 50 + frames[:10]])
    if spherical:
        faiss.normalize_L2(frames)
    together = faiss.Kmeans(
        4,
        30,
        niter=40,
        early_stop_threshold=tolerance,
        spherical=spherical,
        max_points_per_centroid=4000,
        min_points_per_centroid=1,
    )
    together.train(frames, init_centroids=initial)
    engine = Faiss(30, max_iterations=40, tolerance=tolerance, spherical=spherical)
    seen: list[tuple[int | None, str]] = []
    found = engine._passes(frames, initial, lambda *words: seen.append(words))
    splits = [each["nsplit"] for each in together.iteration_stats]
    assert np.array_equal(found.centroids.numpy(), together.centroids)
    assert (found.iterations, found.reseeded) == (len(splits), sum(splits))
    assert [done for done, _ in seen] == list(range(1, len(splits) + 1))
    distances = ((frames[:, None] - together.centroids[None]) ** 2).sum(-1).min(1).sum()
    assert float(seen[-1][1].removeprefix("inertia ")) == pytest.approx(distances, rel=0.1)


def test_mini_batches_say_where_they_are_and_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    settings = {"batch_size": 500, "max_iter": 7, "n_init": 2, "tol": 0.0, "random_state": 3}
    frames = blobs(2000)
    alone = MiniBatchKMeans(9, max_no_improvement=100, reassignment_ratio=0.0, **settings)
    alone.fit(frames)
    found = KMeans("minibatch", 9, batch_frames=500, max_iterations=7, restarts=2, seed=3)
    found.fit(frames)
    assert np.array_equal(found.cluster_centers_, alone.cluster_centers_)
    lines = [line for line in capsys.readouterr().err.splitlines() if "mini-batches" in line]
    assert re.fullmatch(
        r"mini-batches of k-means: 0 of at most 28, 0:00:0\d so far, start 2 of 2", lines[1]
    )
    assert re.fullmatch(
        r"mini-batches of k-means: 6 of at most 28, \S+/s, 0:00:0\d so far, "
        r"at most 0:00:0\d left, pass 2 of at most 7, inertia \S+ a frame",
        lines[7],
    )
    assert len(lines) == 2 + 28
    last = float(lines[-1].split("inertia ")[1].split()[0])
    assert last == pytest.approx(found.inertia_ / len(frames), rel=0.1)
