from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_io import CENTROIDS, DESCRIPTION
from hubert_pretrain.clustering.pca import Transform
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import MFCC_GRID, MODEL_GRID

LAYER = {"kind": "hubert_layer", "dim": 768, "layer": 6, "weights_sha256": "3f9a0c12beef"}


def codebook(n_clusters: int = 7, dim: int = 39, **changes: object) -> Codebook:
    centroids = torch.randn(n_clusters, dim, generator=torch.Generator().manual_seed(0))
    return Codebook(
        **{"centroids": centroids, "features": Mfcc().fingerprint(), "grid": MODEL_GRID, **changes}
    )  # type: ignore[arg-type]


def test_assign_is_the_nearest_centroid() -> None:
    ours = codebook()
    frames = 3 * torch.randn(2, 50, 39) + 20  # far from the origin, as log energies are
    expected = torch.cdist(frames.double(), ours.centroids.double().expand(2, -1, -1)).argmin(-1)
    assert ours.assign(frames).equal(expected)
    assert ours.assign(frames[0, 0]).shape == ()


def test_a_centroid_is_assigned_to_itself() -> None:
    ours = codebook(n_clusters=100)
    assert ours.assign(ours.centroids).tolist() == list(range(100))


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    ours = codebook(fit={"inertia": 1.5})
    ours.save(tmp_path)
    again = Codebook.load(tmp_path)
    assert again.centroids.equal(ours.centroids)
    assert (again.features, again.grid, again.fit, again.fingerprint) == (
        ours.features,
        ours.grid,
        ours.fit,
        ours.fingerprint,
    )


def test_another_dimension_is_refused_naming_both_and_where_they_came_from(tmp_path: Path) -> None:
    codebook(dim=768, features=LAYER).save(tmp_path)
    loaded = Codebook.load(tmp_path)
    with pytest.raises(
        ArtefactError,
        match=r"768, fitted on hubert_layer \(dim 768, layer 6, .*frames have dimension 39",
    ) as error:
        loaded.assign(torch.zeros(5, 39))
    assert str(tmp_path) in str(error.value)


def test_other_features_are_refused_naming_the_difference() -> None:
    codebook().check_features(Mfcc())
    with pytest.raises(
        ArtefactError,
        match=r"fitted on hubert_layer .* come from mfcc \(dim 39\).*"
        r"kind: hubert_layer here, mfcc there",
    ):
        codebook(dim=768, features=LAYER).check_features(Mfcc())
    with pytest.raises(ArtefactError, match=r"grid: .*hop=160"):
        codebook(grid=MFCC_GRID).check_features(Mfcc())
    with pytest.raises(ArtefactError, match=r"hop=160\) there, twice as many: are these 100 Hz\?"):
        codebook().check_features(Mfcc(hop_seconds=0.01))


def test_damaged_or_mixed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="missing, damaged"):
        Codebook.load(tmp_path)
    codebook().save(tmp_path)
    codebook(n_clusters=8).save(tmp_path / "other")
    (tmp_path / CENTROIDS).write_bytes((tmp_path / "other" / CENTROIDS).read_bytes())
    with pytest.raises(ArtefactError, match="not the one that"):
        Codebook.load(tmp_path)
    (tmp_path / CENTROIDS).write_bytes(b"cut")
    with pytest.raises(ArtefactError, match="cannot be read"):
        Codebook.load(tmp_path)
    (tmp_path / DESCRIPTION).write_text(json.dumps({"format": "something else"}))
    with pytest.raises(ArtefactError, match="name the folder of a codebook"):
        Codebook.load(tmp_path)


@pytest.mark.parametrize("spherical", [False, True])
def test_a_transform_is_part_of_the_assignment(spherical: bool) -> None:
    """Its mean too: frames lie far from the origin."""
    torch.manual_seed(0)
    frames = 50 + torch.randn(400, 6)
    transform = Transform(frames.mean(0), torch.randn(6, 4))
    centroids = torch.randn(7, 4)
    if spherical:
        centroids = torch.nn.functional.normalize(centroids, dim=1)
    codebook = Codebook(
        centroids, {"kind": "test"}, MODEL_GRID, transform=transform, spherical=spherical
    )
    expected = torch.cdist(codebook.project(frames), centroids).argmin(1)
    assert len(expected.unique()) > 3
    assert torch.equal(codebook.assign(frames), expected)
