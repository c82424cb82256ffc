"""Scores of layers, on tones that some layers tell apart and others do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.layer_selection import (
    CRITERIA,
    LayerScore,
    best_layer,
    choose_rows,
    score_layers,
)
from hubert_pretrain.config.schema import (
    ClusteringConfig,
    IterationConfig,
    LayerChoiceConfig,
    Recipe,
)
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.files import write_json
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.plan import stages
from hubert_pretrain.pipeline.workspace import FORMAT, Workspace
from hubert_pretrain.stages import cluster as cluster_stage
from hubert_pretrain.stages.extraction import extraction

Tones = Callable[..., Corpus]
TINY = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


class NoisyMfcc(Mfcc):
    """Three "layers": noise, MFCC, MFCC drowned in noise. Pretends to be LayerFeatures."""

    layers = (1, 2, 3)
    dim = 3 * 39

    def extract_packed(self, waveforms: Any) -> Tensor:
        frames = super().extract_packed(waveforms)
        noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(len(frames)))
        return torch.cat([noise, frames, frames + 30 * noise], dim=-1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tones: Tones) -> Corpus:
    return tones(tmp_path_factory.mktemp("layers") / "corpus")


@pytest.fixture(scope="module")
def scores(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[LayerScore]:
    rows = corpus.manifest.rows("valid")
    return score_layers(
        corpus,
        rows,
        NoisyMfcc(),
        n_clusters=8,
        workers=2,
        scratch=tmp_path_factory.mktemp("scratch"),
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_finds_the_layer_that_encodes_the_phones(
    scores: list[LayerScore], criterion: str
) -> None:
    assert best_layer(scores, criterion) == 2


def test_scores_follow_from_the_construction_of_the_layers(scores: list[LayerScore]) -> None:
    noise, mfcc, drowned = scores
    assert (mfcc.pnmi or 0) > 0.7
    assert (mfcc.pnmi or 0) > (drowned.pnmi or 0) > (noise.pnmi or 0)
    assert mfcc.abx is not None
    assert mfcc.abx < 0.1
    assert (noise.abx or 0) > mfcc.abx + 0.2
    assert abs(noise.stability) < 0.1 < mfcc.stability
    assert (mfcc.speaker_nmi or 0) > (noise.speaker_nmi or 0)


def test_scores_do_not_depend_on_where_frames_are_stored(
    corpus: Corpus, scores: list[LayerScore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubert_pretrain.clustering.sample.MEMORY_BYTES", 1000)
    again = score_layers(
        corpus, corpus.manifest.rows("valid"), NoisyMfcc(), n_clusters=8, scratch=tmp_path
    )  # type: ignore[arg-type]
    assert again == scores
    assert not list(tmp_path.iterdir())


def test_without_alignments_stability_remains(tmp_path: Path, tones: Tones) -> None:
    bare = tones(tmp_path / "bare", aligned=False)
    found = score_layers(
        bare, bare.manifest.rows("valid"), NoisyMfcc(), n_clusters=8, scratch=tmp_path
    )  # type: ignore[arg-type]
    assert best_layer(found, "stability") == 2
    assert found[1].pnmi is None
    with pytest.raises(
        DataError,
        match="cannot be chosen by pnmi: these utterances have no alignments; choose another",
    ):
        best_layer(found, "pnmi")
    with pytest.raises(
        DataError,
        match=r"split 'valid' has no utterances with alignments "
        r"to choose a layer by pnmi.*stability",
    ):
        choose_rows(bare, "valid", "pnmi", max_hours=1.0, seed=0)
    assert len(choose_rows(bare, "valid", "stability", max_hours=1.0, seed=0)) == 8


def test_invalid_settings_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"layer_choice\.criterion='pnm': expected one of .* \(did you mean 'pnmi'\?\)",
    ):
        choose_rows(corpus, "valid", "pnm", max_hours=1.0, seed=0)
    with pytest.raises(DataError, match="too few to score layers with K=5000"):
        score_layers(
            corpus, corpus.manifest.rows("valid"), NoisyMfcc(), n_clusters=5000, scratch=tmp_path
        )  # type: ignore[arg-type]


def test_layer_auto_is_chosen_once_and_recorded(corpus: Corpus, tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "checkpoint").mkdir()
    save_model(tmp_path / "checkpoint", Hubert(TINY))
    features = {
        "_target_": "hubert_pretrain.features.hubert_layer.HubertLayer",
        "checkpoint": str(tmp_path / "checkpoint"),
        "layer": "auto",
    }
    clustering = ClusteringConfig(n_clusters=6, fraction=1.0, restarts=2)
    iteration = IterationConfig(
        features, clustering=clustering, layer_choice=LayerChoiceConfig(n_clusters=8)
    )
    recipe = Recipe(name="test", iterations={"it1": iteration})
    workspace = Workspace(tmp_path / "run")
    workspace.folder("prepare").parent.mkdir(parents=True)
    workspace.folder("prepare").symlink_to(corpus.folder)
    write_json(
        corpus.folder / "meta.json", {"format": FORMAT, "fingerprint": "prepare", "facts": {}}
    )
    folder = workspace.partial_folder("it1/cluster")
    folder.mkdir(parents=True)
    facts = cluster_stage.run(recipe, workspace, "it1/cluster", folder)
    choice = facts["layer_choice"]
    assert json.loads(json.dumps(choice)) == choice
    assert [score["layer"] for score in choice["scores"]] == [1, 2, 3]
    assert choice["layer"] == max(choice["scores"], key=lambda score: score["pnmi"])["layer"]
    codebook = Codebook.load(folder)
    assert codebook.features["layer"] == choice["layer"]
    assert codebook.dim == 16
    with extraction(recipe, workspace, "it1", layer=codebook.features["layer"]) as at:
        codebook.check_features(at.extractor)
        assert isinstance(at.extractor, HubertLayer)
    assert not (folder / "layers.scratch").exists()


def test_the_layer_choice_is_part_of_the_stage_fingerprint() -> None:
    def identity(layer: Any, **choice: Any) -> dict[str, Any]:
        node = {"_target_": "x", "checkpoint": "it1/pretrain", "layer": layer}
        iterations = {
            "it1": IterationConfig({"_target_": "y"}),
            "it2": IterationConfig(node, layer_choice=LayerChoiceConfig(**choice)),
        }
        return next(
            stage for stage in stages(Recipe(iterations=iterations)) if stage.name == "it2/cluster"
        ).identity

    assert identity("auto") != identity("auto", criterion="abx")
    assert identity(3) == identity(3, criterion="abx")
    assert "layer_choice" not in identity(3)
