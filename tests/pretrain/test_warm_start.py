"""Warm start: encoder and head of a checkpoint, refusals, clusters matched across iterations."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.config.schema import IterationConfig, LossConfig, Recipe
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.files import write_json
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.registry import FORMATS
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import FORMAT, META, Workspace
from hubert_pretrain.pretrain.warm_start import cooccurrence, match, warm_start
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter
from hubert_pretrain.training.loggers import read_metrics
from tests.pretrain.conftest import CLUSTERS, make_recipe, model_config

SOFTMAX = LossConfig(unmasked_weight=0.5, head="softmax")
ORDER = [3, 0, 4, 1, 2]
"""Cluster c of iteration 1 is called ORDER[c] in iteration 2."""


def write_targets(
    folder: Path, manifest: Manifest, n_clusters: int, ids: Callable[[int], np.ndarray[Any, Any]]
) -> None:
    folder.mkdir(parents=True)
    codebook = CodebookSet.of(Codebook(torch.eye(n_clusters) + 1, {"kind": "test"}, MODEL_GRID))
    writer = TargetWriter.create(folder, manifest, codebook)
    for block in writer.pending():
        writer.write(int(block), [ids(int(row)) for row in writer.rows(int(block))])


@pytest.fixture(scope="module")
def loop(prepared: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished iteration 1; labels of an iteration 2 that are those of iteration 1 under other
    names, of an it3 with more clusters.
    """
    workspace = Workspace(tmp_path_factory.mktemp("loop") / "run")
    shutil.copytree(prepared.root, workspace.root)
    old = TargetStore.open(workspace.folder("it1/label"))
    manifest = Manifest.open(workspace.folder("prepare"))
    write_targets(
        workspace.folder("it2/label"),
        manifest,
        CLUSTERS,
        lambda row: np.array(ORDER)[old.targets(row)],
    )
    write_targets(
        workspace.folder("it3/label"),
        manifest,
        CLUSTERS + 3,
        lambda row: np.array([5, 6, 7, 0, 1])[old.targets(row)],
    )
    for stage in ("it2/label", "it3/label"):
        write_json(
            workspace.folder(stage) / META, {"format": FORMAT, "fingerprint": stage, "facts": {}}
        )
    first = workspace.folder("it1/pretrain")
    write_json(
        first / META,
        {
            "format": FORMAT,
            "fingerprint": "it1/pretrain",
            "facts": run(continued(), workspace, "it1/pretrain", first),
        },
    )
    return workspace


def continued(iteration: str = "it1", **changes: Any) -> Recipe:
    recipe = make_recipe(**changes)
    recipe.iterations = {iteration: recipe.iterations["it1"]}
    return recipe


def still(
    loop: Workspace, iteration: str, folder: Path, **changes: Any
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Results of a continued pretraining that learns nothing: those of its start."""
    recipe = continued(
        iteration,
        steps=2,
        learning_rate=1e-9,
        log_every_steps=1,
        start_from="it1/pretrain",
        **changes,
    )
    return run(recipe, loop, f"{iteration}/pretrain", folder), read_metrics(
        folder / "logs" / "metrics.csv"
    )


@pytest.fixture
def first(loop: Workspace) -> dict[str, Any]:
    return loop.artefact("it1/pretrain").facts


def test_same_codebook_goes_on_with_the_head(
    loop: Workspace, first: dict[str, Any], tmp_path: Path
) -> None:
    facts, rows = still(loop, "it1", tmp_path)
    # Crops and masks of the valid split are those of the stage's seed, and that is the same stage
    # here.
    assert facts["masked_loss_nats"] == pytest.approx(first["masked_loss_nats"], rel=1e-4)
    assert rows[0]["lr"] > 0


def test_another_codebook_gets_a_new_head(loop: Workspace, tmp_path: Path) -> None:
    still(loop, "it2", tmp_path)
    one = load_checkpoint(loop.folder("it1/pretrain"))
    two = load_checkpoint(tmp_path)
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(
        one.head_state["unit_embeddings"], two.head_state["unit_embeddings"], atol=1e-3
    )


def test_warm_units_make_renamed_clusters_no_new_task(loop: Workspace, tmp_path: Path) -> None:
    """The new head gives a renamed cluster the logit that the old head gave it under its old id."""
    still(loop, "it2", tmp_path, start_head="warm")
    old, new = (
        load_checkpoint(folder).build_head() for folder in (loop.folder("it1/pretrain"), tmp_path)
    )
    frames = torch.randn(50, 16)
    torch.testing.assert_close(new(frames)[:, ORDER], old(frames), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(new(frames), old(frames), atol=1e-2)


def test_more_clusters_keep_a_new_start_where_none_was_seen(loop: Workspace) -> None:
    new = TargetStore.open(loop.folder("it3/label"))
    head = CodebookHead(16, 8, CLUSTERS + 3)
    before = head.unit_embeddings.detach().clone()
    message = warm_start(
        Hubert(model_config()), head, loop.folder("it1/pretrain"), new, choice="warm"
    )
    old = load_checkpoint(loop.folder("it1/pretrain")).head_state["unit_embeddings"]
    assert message.endswith(
        f"{CLUSTERS} of {CLUSTERS + 3} clusters of the head from clusters that match"
    )
    assert torch.equal(head.unit_embeddings.detach()[[5, 6, 7, 0, 1]], old)
    assert torch.equal(head.unit_embeddings.detach()[[2, 3, 4]], before[[2, 3, 4]])


@pytest.fixture(scope="module")
def softmax_loop(loop: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same with a softmax head in iteration 1."""
    workspace = Workspace(tmp_path_factory.mktemp("softmax") / "run")
    shutil.copytree(loop.root, workspace.root)
    first = workspace.folder("it1/pretrain")
    shutil.rmtree(first)
    facts = run(continued(loss=SOFTMAX), workspace, "it1/pretrain", first)
    write_json(first / META, {"format": FORMAT, "fingerprint": "it1/softmax", "facts": facts})
    return workspace


def test_a_softmax_head_goes_on_where_the_codebook_is_the_same(
    softmax_loop: Workspace, tmp_path: Path
) -> None:
    facts, _ = still(softmax_loop, "it1", tmp_path, loss=SOFTMAX)
    first = softmax_loop.artefact("it1/pretrain").facts
    assert facts["masked_loss_nats"] == pytest.approx(first["masked_loss_nats"], rel=1e-4)


def test_rows_of_a_softmax_head_follow_renamed_clusters(
    softmax_loop: Workspace, tmp_path: Path
) -> None:
    still(softmax_loop, "it2", tmp_path, loss=SOFTMAX, start_head="warm")
    old, new = (
        load_checkpoint(folder).build_head()
        for folder in (softmax_loop.folder("it1/pretrain"), tmp_path)
    )
    frames = torch.randn(50, 16)
    torch.testing.assert_close(new(frames)[:, ORDER], old(frames), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(new(frames), old(frames), atol=1e-2)


def test_heads_of_two_kinds_do_not_follow_each_other(softmax_loop: Workspace) -> None:
    with pytest.raises(ArtefactError, match=r"two heads of one kind \(loss.head\)"):
        warm_start(
            Hubert(model_config()),
            CodebookHead(16, 8, 5),
            softmax_loop.folder("it1/pretrain"),
            TargetStore.open(softmax_loop.folder("it2/label")),
            choice="warm",
        )


def test_keeping_a_head_that_does_not_fit_is_refused(loop: Workspace) -> None:
    new = TargetStore.open(loop.folder("it3/label"))
    with pytest.raises(
        ArtefactError, match=r"start_head=keep.*'n_clusters': 5.*'n_clusters': 8.*start_head=new"
    ):
        warm_start(
            Hubert(model_config()),
            CodebookHead(16, 8, 8),
            loop.folder("it1/pretrain"),
            new,
            choice="keep",
        )


def test_another_network_is_refused_by_its_fields(loop: Workspace) -> None:
    other = Hubert(
        model_config(hidden_size=32, num_hidden_layers=3, layerdrop=0.0, hidden_dropout=0.3)
    )
    expected = (
        r"hidden_size is 16 there, 32 here; model.num_hidden_layers is 2 there, 3 here; choose"
    )
    with pytest.raises(ArtefactError, match=expected) as caught:
        warm_start(
            other,
            CodebookHead(32, 8, 5),
            loop.folder("it1/pretrain"),
            TargetStore.open(loop.folder("it1/label")),
        )
    assert "dropout" not in str(caught.value)
    assert "layerdrop" not in str(caught.value)


@pytest.mark.parametrize("format_name", ["huggingface", "fairseq", "torchaudio", "s3prl"])
def test_from_other_projects(loop: Workspace, tmp_path: Path, format_name: str) -> None:
    form = FORMATS[format_name]
    loaded = load_checkpoint(loop.folder("it1/pretrain"))
    path = tmp_path / "out" / form.file if form.file else tmp_path / "out"
    path.parent.mkdir(exist_ok=True)
    form.write(path, loaded)
    model = Hubert(model_config())
    message = warm_start(
        model, CodebookHead(16, 8, CLUSTERS), path, TargetStore.open(loop.folder("it2/label"))
    )
    assert message == f"starts from {path} with a new head"
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("name", ["base", "large"])
def test_from_fairseqs_own_checkpoint(
    fairseq_outputs: Path, loop: Workspace, tmp_path: Path, name: str
) -> None:
    path = fairseq_outputs / f"{name}_checkpoint.pt"
    theirs = load_checkpoint(path).model
    recipe = continued("it2", steps=2, learning_rate=1e-9, log_every_steps=1, start_from=str(path))
    recipe.model = dataclasses.replace(theirs.config, layerdrop=0.1)
    facts = run(recipe, loop, "it2/pretrain", tmp_path)
    assert np.isfinite(facts["masked_loss_nats"])
    for key, tensor in load_checkpoint(tmp_path).model.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[key], rtol=1e-4, atol=1e-5)


def test_warm_units_need_the_old_targets(loop: Workspace, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(loop.folder("it1/pretrain"), alone)
    with pytest.raises(ConfigError, match=r"targets it was trained on, but .*label does not exist"):
        warm_start(
            Hubert(model_config()),
            CodebookHead(16, 8, 5),
            alone,
            TargetStore.open(loop.folder("it2/label")),
            choice="warm",
        )


def test_a_run_that_was_interrupted_goes_on_and_does_not_start_over(
    loop: Workspace, tmp_path: Path
) -> None:
    def made(steps: int, folder: Path) -> dict[str, torch.Tensor]:
        recipe = continued("it2", steps=6, start_from="it1/pretrain")
        if steps < 6:
            recipe.trainer.time_limit_minutes = 1e-9  # leaves at the first step boundary
            with pytest.raises(Exception, match="left at step"):
                run(recipe, loop, "it2/pretrain", folder)
            recipe.trainer.time_limit_minutes = 0.0
        run(recipe, loop, "it2/pretrain", folder)
        return load_checkpoint(folder).model.state_dict()

    whole = made(6, tmp_path / "whole")
    cut = made(1, tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_counts_are_of_frames_that_meet(loop: Workspace) -> None:
    new = TargetStore.open(loop.folder("it2/label"))
    old = TargetStore.open(loop.folder("it1/label"))
    counts = cooccurrence(new, old, seed=1)
    assert counts.sum() == len(old.ids)
    assert np.array_equal(np.flatnonzero(counts.sum(axis=0)), np.arange(CLUSTERS))
    assert match(counts).tolist() == np.argsort(ORDER).tolist()
    assert np.count_nonzero(counts) == CLUSTERS
    part = cooccurrence(new, old, seed=1, max_frames=100)
    assert 100 <= part.sum() < counts.sum()
    with pytest.raises(ArtefactError, match="targets of other utterances"):
        cooccurrence(new, _shorter(old), seed=1)


def _shorter(store: TargetStore) -> Any:
    class Other(TargetStore):
        manifest_fingerprint = "another"  # type: ignore[assignment]

    return Other(store.folder)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_matching_keeps_as_many_frames_as_can_be(rows: int, columns: int, seed: int) -> None:
    """Against all one-to-one matchings."""
    counts = np.random.default_rng(seed).integers(0, 4, (rows, columns))
    partners = match(counts)
    chosen = [(row, int(column)) for row, column in enumerate(partners) if column >= 0]
    assert all(counts[pair] > 0 for pair in chosen)
    assert all((counts[row].sum() > 0) == (partners[row] >= 0) for row in range(rows))
    wide = counts if rows <= columns else counts.T
    best = max(
        sum(wide[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert sum(counts[pair] for pair in chosen) >= best


def test_the_pipeline_knows_where_it_starts(tmp_path: Path) -> None:
    recipe = make_recipe()
    features = {"_target_": "hubert_pretrain.features.mfcc.Mfcc"}
    plain = IterationConfig(features=features, pretrain=recipe.iterations["it1"].pretrain)
    warm = dataclasses.replace(
        plain,
        pretrain=dataclasses.replace(plain.pretrain, start_from="it1/pretrain", start_head="warm"),
    )
    recipe.iterations = {"it1": plain, "it2": warm}
    stages = {stage.name: stage for stage in plan.stages(recipe)}
    assert stages["it2/pretrain"].inputs == ("prepare", "it2/label", "it1/pretrain")
    assert "start_from" not in stages["it1/pretrain"].identity["pretrain"]
    recipe.iterations = {"it1": warm}
    with pytest.raises(ConfigError, match="it1/pretrain reads 'it1/pretrain', which runs after it"):
        plan.stages(recipe)
