"""The paper's product k-means, from audio to an exported checkpoint, through the real stages."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import ClusteringConfig, ExportConfig, LossConfig, Recipe
from hubert_pretrain.files import write_json
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pipeline.workspace import FORMAT, META, Workspace
from hubert_pretrain.stages import cluster as cluster_stage
from hubert_pretrain.stages import export as export_stage
from hubert_pretrain.stages import label as label_stage
from hubert_pretrain.stages import pretrain as pretrain_stage
from hubert_pretrain.targets.store import TargetStore
from tests.targets.conftest import make_corpus

PARTS = [
    {"name": name, "columns": [first, first + 13]}
    for name, first in (("static", 0), ("delta", 13), ("delta_delta", 26))
]
SIZES = [6, 4, 4]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A prepared corpus."""
    workspace = Workspace(tmp_path_factory.mktemp("product"))
    make_corpus(workspace.folder("prepare"), 20)
    write_json(
        workspace.folder("prepare") / META,
        {"format": FORMAT, "fingerprint": "prepare", "facts": {}},
    )
    return workspace


def run(module: object, recipe: Recipe, workspace: Workspace, stage: str) -> dict[str, object]:
    folder = workspace.folder(stage)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stage_module: Any = module
    facts: dict[str, object] = stage_module.run(recipe, workspace, stage, folder)
    write_json(folder / META, {"format": FORMAT, "fingerprint": stage, "facts": facts})
    return facts


@pytest.mark.parametrize("tied", [False, True])
def test_from_audio_to_an_exported_checkpoint(
    tied: bool, labelled: Workspace, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    values = recipe(steps=3, max_crop_seconds=0.9, loss=LossConfig(tie_projections=tied))
    parts = [{**part, "n_clusters": size} for part, size in zip(PARTS, SIZES, strict=True)]
    clustering = ClusteringConfig(n_clusters=6, fraction=1.0, restarts=1, codebooks=parts)
    features = {"_target_": "hubert_pretrain.features.mfcc.Mfcc"}
    values.iterations["it1"] = dataclasses.replace(
        values.iterations["it1"], features=features, clustering=clustering
    )
    if not labelled.is_done("it1/label"):
        run(cluster_stage, values, labelled, "it1/cluster")
        facts = run(label_stage, values, labelled, "it1/label")
        assert facts["n_clusters"] == SIZES
        each = facts["codebooks"]
        assert isinstance(each, list)
        assert len(each) == 3
        assert facts["unigram_entropy_nats"] == pytest.approx(
            sum(one["unigram_entropy_nats"] for one in each)
        )
        assert each[0]["pnmi"] > each[1]["pnmi"], (
            "a tone says which phone it is, its slope does not"
        )
        assert (labelled.folder("it1/label") / "quality.png").read_bytes()[:4] == b"\x89PNG"
    store = TargetStore.open(labelled.folder("it1/label"))
    assert store.sizes == SIZES
    assert store.targets(0).shape == (len(store.targets(0)), 3)
    facts = run(pretrain_stage, values, labelled, "it1/pretrain")
    assert isinstance(facts["masked_loss_nats"], float)
    head = load_model(labelled.folder("it1/pretrain")).build_head()
    assert head.n_clusters == tuple(SIZES)
    assert head.tie_projections is tied
    values.export = ExportConfig(checkpoints=["it1/pretrain"])
    run(export_stage, values, labelled, "export")
    loaded = load_model(labelled.folder("it1/pretrain"))
    assert torch.isfinite(loaded.model(torch.randn(1, 4000)).last).all()
    assert list(labelled.folder("export").rglob("model.safetensors"))
