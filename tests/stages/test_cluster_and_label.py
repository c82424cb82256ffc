"""The stages `it*/cluster` and `it*/label` on a small corpus of generated audio."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hubert_pretrain.tools.import_kmeans import main as import_kmeans

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.config.schema import ClusteringConfig, IterationConfig, Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.files import write_json
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import FORMAT, Workspace
from hubert_pretrain.stages import cluster as cluster_stage
from hubert_pretrain.stages import label as label_stage
from hubert_pretrain.stages.units import load_units
from hubert_pretrain.targets.fairseq_km import write_km
from hubert_pretrain.targets.store import TargetStore
from tests.targets.conftest import make_corpus

MFCC = {"_target_": "hubert_pretrain.features.mfcc.Mfcc"}
LAYER = {
    "_target_": "hubert_pretrain.features.hubert_layer.HubertLayer",
    "checkpoint": "it1/pretrain",
    "layer": 2,
}
TINY = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    projection_size=8,
)


def recipe(n_clusters: int = 6) -> Recipe:
    clustering = ClusteringConfig(n_clusters=n_clusters, fraction=1.0, restarts=2)
    return Recipe(
        name="test",
        iterations={
            name: IterationConfig(features=node, clustering=clustering)
            for name, node in (("it1", MFCC), ("it2", LAYER))
        },
    )


def seal(workspace: Workspace, stage: str, folder: Path, facts: dict[str, Any]) -> None:
    """Publishes a stage that has returned, as the pipeline does."""
    workspace.folder(stage).parent.mkdir(parents=True, exist_ok=True)
    folder.rename(workspace.folder(stage))
    write_json(
        workspace.folder(stage) / "meta.json",
        {"format": FORMAT, "fingerprint": stage, "facts": facts},
    )


def run(module: Any, recipe: Recipe, workspace: Workspace, stage: str) -> dict[str, Any]:
    folder = workspace.partial_folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    facts = module.run(recipe, workspace, stage, folder)
    seal(workspace, stage, folder, facts)
    return dict(facts)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    corpus = make_corpus(tmp_path / "corpus")
    workspace = Workspace(tmp_path / "run")
    seal(workspace, "prepare", corpus.folder, {})
    return workspace


def test_mfcc_to_targets(workspace: Workspace) -> None:
    threads = torch.get_num_threads()
    fitted = run(cluster_stage, recipe(), workspace, "it1/cluster")
    assert json.loads(json.dumps(fitted)) == fitted
    assert (fitted["n_clusters"], fitted["dim"], fitted["features"]["kind"]) == (6, 39, "mfcc")
    labelled = run(label_stage, recipe(), workspace, "it1/label")
    assert json.loads(json.dumps(labelled)) == labelled
    assert labelled["pnmi"] > 0.7
    store = TargetStore.open(workspace.folder("it1/label"))
    store.check(Corpus.open(workspace.folder("prepare")).manifest)
    assert store.codebook["sha256"] == Codebook.load(workspace.folder("it1/cluster")).fingerprint
    assert torch.get_num_threads() == threads
    assert sorted(path.name for path in workspace.folder("it1/cluster").iterdir()) == [
        "codebook.json",
        "codebook.safetensors",
        "meta.json",
    ]


def test_targets_of_a_teacher_with_half_the_frames(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The codebook is the teacher's, the targets are the model's: each counts twice."""
    config = recipe()
    config.iterations["it1"].features = {**MFCC, "hop_seconds": 0.04}
    run(cluster_stage, config, workspace, "it1/cluster")
    assert Codebook.load(workspace.folder("it1/cluster")).grid == FrameGrid(400, 640)
    labelled = run(label_stage, config, workspace, "it1/label")
    assert labelled["pnmi"] > 0.7
    assert "25 a second from the teacher, 50 for the model" in capsys.readouterr().out
    store = TargetStore.open(workspace.folder("it1/label"))
    store.check(Corpus.open(workspace.folder("prepare")).manifest, config.model.grid)
    ids = store.targets(0).astype(int)
    later = ids[2::2]
    assert (ids[1::2][: len(later)] == later).all()
    assert len(np.unique(ids)) > 1


def test_both_end_with_their_numbers(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = run(cluster_stage, recipe(), workspace, "it1/cluster")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"sample: {fitted['frames']} frames, 0.1 min, 6 utterances"
    assert fitted["hours"] == pytest.approx(fitted["frames"] * 0.02 / 3600, rel=0.05)
    assert lines[-1].startswith("codebook: K 6, mean squared distance ")
    assert lines[-1].endswith(f", empty clusters 0, passes {fitted['iterations']}")
    labelled = run(label_stage, recipe(), workspace, "it1/label")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"targets: frames {labelled['frames']}, clusters used 6, entropy (nats)")
    assert f"PNMI {labelled['pnmi']:.4g}" in last


def test_few_frames_for_many_clusters_are_a_warning(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = run(cluster_stage, recipe(40), workspace, "it1/cluster")
    out = capsys.readouterr().out
    assert f"warning: {fitted['frames']} frames for K=40 clusters are fewer than 100 for" in out


def test_less_memory_than_the_process_holds_is_refused_before_the_work(
    workspace: Workspace,
) -> None:
    values = recipe()
    values.iterations["it1"].clustering.max_memory_gb = 0.1
    with pytest.raises(ConfigError, match=r"max_memory_gb=0.1: the process holds .* set it to at"):
        run(cluster_stage, values, workspace, "it1/cluster")
    assert not list(workspace.partial_folder("it1/cluster").iterdir())


def test_a_layer_of_the_first_iteration_to_targets(workspace: Workspace) -> None:
    torch.manual_seed(0)
    folder = workspace.partial_folder("it1/pretrain")
    folder.mkdir(parents=True)
    save_model(folder, Hubert(TINY))
    seal(workspace, "it1/pretrain", folder, {})
    fitted = run(cluster_stage, recipe(), workspace, "it2/cluster")
    assert (fitted["dim"], fitted["features"]["layer"]) == (16, 2)
    labelled = run(label_stage, recipe(), workspace, "it2/label")
    assert labelled["frames"] == int(TargetStore.open(workspace.folder("it2/label")).offsets[-1])


def test_a_killed_cluster_leaves_nothing_behind(workspace: Workspace) -> None:
    whole = run(cluster_stage, recipe(), workspace, "it1/cluster")
    again = workspace.partial_folder("it1/cluster")
    again.mkdir()
    (again / "codebook.safetensors").write_bytes(b"half")
    np.save(again / "frames.scratch", np.zeros(3))
    (again / "mapped.scratch").write_bytes(b"of a killed run")
    assert cluster_stage.run(recipe(), workspace, "it1/cluster", again) == whole
    first = workspace.folder("it1/cluster")
    assert (again / "codebook.safetensors").read_bytes() == (
        first / "codebook.safetensors"
    ).read_bytes()
    assert not (again / "frames.scratch").exists()
    assert not (again / "mapped.scratch").exists()


def test_a_codebook_of_other_features_is_refused(workspace: Workspace) -> None:
    run(cluster_stage, recipe(), workspace, "it1/cluster")
    changed = workspace.folder("it1/cluster")
    codebook = Codebook.load(changed)
    Codebook(codebook.centroids, {**codebook.features, "mel_bins": 40}, codebook.grid).save(changed)
    with pytest.raises(ArtefactError, match="mel_bins: 40 here, 23 there"):
        run(label_stage, recipe(), workspace, "it1/label")


def test_the_stage_before_must_have_finished(workspace: Workspace) -> None:
    with pytest.raises(ArtefactError, match="stage=it1/cluster"):
        run(label_stage, recipe(), workspace, "it1/label")


def test_imported_targets_replace_clustering(workspace: Workspace, tmp_path: Path) -> None:
    """`iterations.it1.targets`: fairseq's files in, no cluster stage, the same store out."""
    run(cluster_stage, recipe(), workspace, "it1/cluster")
    made = run(label_stage, recipe(), workspace, "it1/label")
    corpus = Corpus.open(workspace.folder("prepare"))
    write_km(tmp_path / "km", corpus, TargetStore.open(workspace.folder("it1/label")))
    values = recipe()
    values.iterations["it2"].targets = str(tmp_path / "km")
    values.data.corpus = {}
    names = [stage.name for stage in plan.stages(values)]
    assert names == [
        "prepare",
        "it1/cluster",
        "it1/label",
        "it1/pretrain",
        "it2/label",
        "it2/pretrain",
    ]
    label = plan.find(values, "it2/label")
    assert label.inputs == ("prepare", str(tmp_path / "km"))
    before = plan.fingerprint_of(label, workspace)
    brought = run(label_stage, values, workspace, "it2/label")
    assert brought == made
    (tmp_path / "km" / "train.km").write_text((tmp_path / "km" / "train.km").read_text()[:-1])
    assert plan.fingerprint_of(label, workspace) != before, "other labels are other targets"
    values.iterations["it2"].targets = "nowhere"
    with pytest.raises(ConfigError, match="nor an existing folder"):
        plan.stages(values)


@pytest.mark.parametrize("source", ["stage of another run", "imported", "codebook alone"])
def test_a_codebook_made_elsewhere_replaces_clustering(
    workspace: Workspace, tmp_path: Path, source: str
) -> None:
    """`iterations.it2.codebook`: no cluster stage, the targets of that codebook."""
    run(cluster_stage, recipe(), workspace, "it1/cluster")
    made = run(label_stage, recipe(), workspace, "it1/label")
    folder = tmp_path / "elsewhere"
    shutil.copytree(workspace.folder("it1/cluster"), folder)
    if source != "stage of another run":
        (folder / "meta.json").unlink()
    if source == "imported":
        np.save(tmp_path / "km.npy", Codebook.load(folder).centroids.numpy())
        shutil.rmtree(folder)
        assert import_kmeans([str(tmp_path / "km.npy"), str(folder)]) == 0
    values = recipe()
    values.iterations["it2"].features = MFCC
    values.iterations["it2"].codebook = str(folder)
    values.data.corpus = {}
    assert "it2/cluster" not in [stage.name for stage in plan.stages(values)]
    label = plan.find(values, "it2/label")
    assert label.inputs == ("prepare", str(folder))
    before = plan.fingerprint_of(label, workspace)
    assert before is not None
    assert run(label_stage, values, workspace, "it2/label") == made
    first, second = (TargetStore.open(workspace.folder(f"{name}/label")) for name in ("it1", "it2"))
    np.testing.assert_array_equal(first.ids, second.ids)

    other = Codebook.load(folder)
    if source == "codebook alone":
        replace(other, centroids=other.centroids + 1).save(folder)
        assert plan.fingerprint_of(label, workspace) != before, "another codebook is other targets"
    values.iterations["it2"].features = {"_target_": "hubert_pretrain.features.log_mel.LogMel"}
    with pytest.raises(ArtefactError, match=r"elsewhere was fitted on mfcc .* come from log_mel"):
        run(label_stage, values, workspace, "it2/label")


def test_units_of_a_codebook_that_names_no_features(workspace: Workspace, tmp_path: Path) -> None:
    run(cluster_stage, recipe(), workspace, "it1/cluster")
    Codebook.load(workspace.folder("it1/cluster")).save(tmp_path / "alone")
    with pytest.raises(
        ArtefactError, match=r"alone: has no meta.json, which says how the features"
    ):
        load_units(tmp_path / "alone")


def test_an_unset_targets_key_is_not_part_of_the_fingerprint() -> None:
    """A field that came later does not make finished stages stale."""
    values = recipe()
    values.data.corpus = {}
    assert "codebook" not in json.dumps(plan.find(values, "it1/label").config)
    assert "targets" not in json.dumps(plan.find(values, "it1/label").config)


def test_units_of_a_run_from_its_cluster_stage_alone(workspace: Workspace, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = workspace.partial_folder("it1/pretrain")
    folder.mkdir(parents=True)
    save_model(folder, Hubert(TINY))
    seal(workspace, "it1/pretrain", folder, {})
    corpus = Corpus.open(workspace.folder("prepare"))
    for iteration, node in (("it1", MFCC), ("it2", LAYER)):
        run(cluster_stage, recipe(), workspace, f"{iteration}/cluster")
        run(label_stage, recipe(), workspace, f"{iteration}/label")
        meta = {"format": FORMAT, "fingerprint": "x", "facts": {}, "config": {"features": node}}
        write_json(workspace.folder(f"{iteration}/cluster") / "meta.json", meta)
        units = load_units(workspace.folder(f"{iteration}/cluster"))
        store = TargetStore.open(workspace.folder(f"{iteration}/label"))
        for row in (0, 5):
            assert (units(corpus.read(row)) == store.targets(row)).mean() > 0.98, "ties apart"
    moved = tmp_path / "moved"
    workspace.folder("it1/pretrain").rename(moved)
    with pytest.raises(
        ArtefactError,
        match=r"come from 'it1/pretrain', which is not beside it any more; "
        r"say where it is \(--checkpoint\)",
    ):
        load_units(workspace.folder("it2/cluster"))
    load_units(workspace.folder("it2/cluster"), checkpoint=moved)
    save_model(moved, Hubert(TINY))
    with pytest.raises(ArtefactError, match=r"weights_sha256: .* here, .* there"):
        load_units(workspace.folder("it2/cluster"), checkpoint=moved)


def test_an_artefact_can_only_name_feature_classes(workspace: Workspace) -> None:
    run(cluster_stage, recipe(), workspace, "it1/cluster")
    meta = {
        "format": FORMAT,
        "fingerprint": "x",
        "facts": {},
        "config": {"features": {"_target_": "os.system", "command": "touch executed"}},
    }
    write_json(workspace.folder("it1/cluster") / "meta.json", meta)
    with pytest.raises(
        ArtefactError,
        match=r"its features are os\.system, not a class of hubert_pretrain\.features",
    ):
        load_units(workspace.folder("it1/cluster"))
    assert not Path("executed").exists()
