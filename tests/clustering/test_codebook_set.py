"""Sets of codebooks: fits, ids against those computed one by one, files, transforms."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hubert_pretrain.clustering import codebook_io
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_io import DESCRIPTION
from hubert_pretrain.clustering.codebook_set import CodebookPart, CodebookSet
from hubert_pretrain.clustering.fit import CodebookFitter, parse_specs
from hubert_pretrain.clustering.frame_source import RankFrames
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.errors import ArtefactError, ConfigError, HubertPretrainError
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID

PRODUCT = [
    {"name": "static", "columns": [0, 13]},
    {"name": "deltas", "columns": [13, 39], "n_clusters": 5},
]
RESIDUAL = [
    {"name": "coarse"},
    {"name": "fine", "residual": True, "n_clusters": 9},
    {"name": "finest", "residual": True},
]
FRAMES = (
    np.random.default_rng(0).normal(size=(4000, 39)).astype(np.float32)
    * np.linspace(9, 1, 39, dtype=np.float32)
    + 20
)


def fitted(
    codebooks: list[dict[str, object]], engine: str = "torch", **more: object
) -> CodebookSet:
    estimator = KMeans(
        engine, restarts=2, max_iterations=20, spherical=bool(more.pop("spherical", False))
    )
    specs = parse_specs(codebooks, dim=39, n_clusters=7)
    return CodebookFitter(estimator, 1, **more).fit(
        RankFrames.whole(FRAMES), specs, features=Mfcc().fingerprint(), grid=MODEL_GRID
    )  # type: ignore[arg-type]


def nearest(frames: np.ndarray, centroids: torch.Tensor) -> np.ndarray:
    return (
        ((frames[:, None].astype(np.float64) - centroids.double().numpy()[None]) ** 2)
        .sum(-1)
        .argmin(1)
    )


@pytest.mark.parametrize("engine", ["minibatch", "torch", "faiss"])
def test_product(engine: str) -> None:
    codebooks = fitted(PRODUCT, engine)
    assert (codebooks.sizes, codebooks.num_codebooks, codebooks.dim) == ([7, 5], 2, 39)
    ids = codebooks.assign(torch.from_numpy(FRAMES).view(2, 2000, 39))
    assert (ids.shape, ids.dtype) == ((2, 2000, 2), torch.int64)
    for number, columns in enumerate((slice(0, 13), slice(13, 39))):
        assert np.array_equal(
            ids[..., number].flatten(),
            nearest(FRAMES[:, columns], codebooks.parts[number].codebook.centroids),
        )
    alone = KMeans(
        engine,
        7,
        restarts=2,
        max_iterations=20,
        seed=int(CodebookFitter(KMeans(), 1).seed_of("static")),
    ).fit(FRAMES[:, :13])
    assert np.array_equal(alone.cluster_centers_, codebooks.parts[0].codebook.centroids.numpy())


def test_each_residual_codebook_leaves_less() -> None:
    codebooks = fitted(RESIDUAL)
    assert codebooks.sizes == [7, 9, 7]
    ids = codebooks.assign(torch.from_numpy(FRAMES)).numpy()
    rest = FRAMES
    inertias = [part.codebook.fit["inertia"] for part in codebooks.parts]
    assert inertias == sorted(inertias, reverse=True)
    for number, part in enumerate(codebooks.parts):
        assert np.array_equal(ids[:, number], nearest(rest, part.codebook.centroids))
        rest = rest - part.codebook.centroids.numpy()[ids[:, number]]
        assert np.square(rest).sum(1).mean() == pytest.approx(inertias[number], rel=1e-4)


def test_ensemble_and_plain() -> None:
    ensemble = fitted([{"name": "small"}, {"name": "large", "n_clusters": 20}])
    assert ensemble.sizes == [7, 20]
    plain = fitted([])
    assert (plain.sizes, plain.is_plain) == ([7], True)
    assert plain.assign(torch.from_numpy(FRAMES)).shape == (4000,)
    assert plain.fingerprint == plain.parts[0].codebook.fingerprint


@pytest.mark.parametrize(
    ("codebooks", "more"),
    [
        ([], {}),
        (PRODUCT, {}),
        (RESIDUAL, {"pca_dims": 5, "whiten": True}),
        ([], {"spherical": True, "pca_dims": 9}),
    ],
)
def test_saved_and_loaded_they_are_the_same(
    tmp_path: Path, codebooks: list[dict[str, object]], more: dict[str, object]
) -> None:
    ours = fitted(codebooks, **more)
    ours.save(tmp_path)
    again = CodebookSet.load(tmp_path)
    assert (again.fingerprint, again.sizes, again.dim, again.grid, again.features) == (
        ours.fingerprint,
        ours.sizes,
        ours.dim,
        ours.grid,
        ours.features,
    )
    frames = torch.from_numpy(FRAMES)
    assert again.assign(frames).equal(ours.assign(frames))
    assert again.to("cpu").fingerprint == ours.fingerprint


def test_a_folder_of_one_codebook_is_a_set_of_one_and_several_are_not_one(tmp_path: Path) -> None:
    one = Codebook(torch.randn(5, 39), Mfcc().fingerprint(), MODEL_GRID)
    one.save(tmp_path / "one")
    assert CodebookSet.load(tmp_path / "one").fingerprint == one.fingerprint
    fitted(PRODUCT).save(tmp_path / "several")
    with pytest.raises(ArtefactError, match=r"holds several codebooks \(static, deltas\)"):
        Codebook.load(tmp_path / "several")
    description = json.loads((tmp_path / "several" / DESCRIPTION).read_text())
    description["parts"][0]["columns"] = [0, 12]
    (tmp_path / "several" / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ArtefactError, match="not the one that"):
        CodebookSet.load(tmp_path / "several")


@pytest.mark.parametrize(
    "more",
    [
        {"pca_dims": 6},
        {"whiten": True},
        {"spherical": True},
        {"spherical": True, "pca_dims": 6, "whiten": True},
    ],
)
def test_the_transform_is_folded_into_the_product(more: dict[str, object]) -> None:
    codebook = fitted([], **more).parts[0].codebook
    assert codebook.dim == 39
    ids = codebook.assign(torch.from_numpy(FRAMES)).numpy()
    projected = codebook.project(torch.from_numpy(FRAMES)).numpy()
    expected = nearest(projected, codebook.centroids)
    distances = np.square(projected[:, None] - codebook.centroids.numpy()[None]).sum(-1)
    ties = np.abs(distances[np.arange(4000), ids] - distances.min(1)) < 1e-5
    assert ties.all()
    assert (ids == expected).mean() > 0.999
    assert codebook.fit["inertia"] == pytest.approx(distances.min(1).mean(), rel=1e-4)


def test_other_frames_and_other_features_are_refused() -> None:
    codebooks = fitted(PRODUCT)
    with pytest.raises(
        ArtefactError,
        match=r"frames of dimension 39, fitted on mfcc \(dim 39\), "
        "but the frames have dimension 13",
    ):
        codebooks.assign(torch.zeros(5, 13))
    codebooks.check_features(Mfcc())
    parts = [
        CodebookPart("x", (0, 39), Codebook(torch.randn(5, 39), Mfcc().fingerprint(), MFCC_GRID))
    ]
    with pytest.raises(ArtefactError, match=r"grid: .*hop=160"):
        CodebookSet(tuple(parts), 39).check_features(Mfcc())


@pytest.mark.parametrize(
    ("codebooks", "message"),
    [
        (
            [{"name": "a", "columns": [0, 40]}],
            r"columns=\[0, 40\]: expected \[start, stop\] within the 39 columns",
        ),
        (
            [{"name": "a", "residual": True}],
            r"\('a'\) is residual, but there is no codebook before it",
        ),
        ([{"name": "a"}, {"name": "a"}], "a name without a dot that no other codebook has"),
        (
            [{"name": "a", "columns": [0, 9]}, {"name": "b", "columns": [0, 8], "residual": True}],
            r"the one before it, \[0, 9\]",
        ),
    ],
)
def test_invalid_codebooks_are_refused(codebooks: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_specs(codebooks, dim=39, n_clusters=7)


def test_a_full_disk_is_an_error_with_its_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(codebook_io, "write_json", full)
    with pytest.raises(
        HubertPretrainError,
        match=r"codebook.safetensors: the disk has no room for \d+ bytes; free some and run",
    ):
        fitted([]).save(tmp_path)


def test_dead_clusters_are_reported() -> None:
    frames = np.repeat(FRAMES[:5], 40, axis=0)
    specs = parse_specs([], dim=39, n_clusters=12)
    codebooks = CodebookFitter(KMeans("torch", restarts=1), 1).fit(
        RankFrames.whole(frames), specs, features={}, grid=MODEL_GRID
    )
    # Of two centroids in one place rounding may give each a part of the frames.
    assert 4 <= codebooks.parts[0].codebook.fit["dead_clusters"] <= 7
