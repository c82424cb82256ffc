"""Intermediate layer supervision, several codebooks and other heads, in a network and through the
whole stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookPart, CodebookSet
from hubert_pretrain.config.schema import LossConfig, Recipe
from hubert_pretrain.config.validate import faults
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.fields import raise_faults
from hubert_pretrain.files import write_json
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import FORMAT, META, Workspace
from hubert_pretrain.pretrain.layer_supervision import LayerSupervision
from hubert_pretrain.pretrain.loss import SupervisedLayer, masked_prediction_loss
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.targets.writer import TargetWriter
from hubert_pretrain.training.loggers import read_metrics
from tests.killed import killed_at_micro_batch

Recipes = Callable[..., Recipe]


def config(**changes: Any) -> HubertConfig:
    sizes = {
        "conv_dim": [8] * 7,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    return HubertConfig(**{**sizes, **positions, **changes})  # type: ignore[arg-type]


def test_nothing_given_is_the_last_layer_alone() -> None:
    supervision = LayerSupervision(config())
    assert (supervision.intermediate, supervision.last_weight) == ([], 1.0)
    assert not supervision.state_dict()


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("own_heads", [False, True])
def test_layers_predict_with_their_weight_norm_and_head(pre_norm: bool, own_heads: bool) -> None:
    values = config(do_stable_layer_norm=pre_norm)
    model = Hubert(values).eval()
    head = CodebookHead(16, 4, 5)
    supervision = LayerSupervision(
        values,
        layers=[1, 2, 3],
        weights=[0.1, 0.2, 0.7],
        make_head=(lambda: CodebookHead(16, 4, 5)) if own_heads else None,
    )
    output = model(torch.randn(1, 4000), hidden_states=True)
    first, second, last = supervision(output, head)
    assert [layer.weight for layer in (first, second, last)] == [0.1, 0.2, 0.7]
    assert (first.head is head) is not own_heads
    assert last.head is head
    assert torch.equal(last.hidden_state, output.last)
    state = output.hidden_states[1]
    expected = (
        nn.functional.layer_norm(state, (16,), eps=values.layer_norm_eps) if pre_norm else state
    )
    torch.testing.assert_close(second.hidden_state, expected)


def test_the_last_layers_prediction_is_the_one_that_is_reported() -> None:
    targets = torch.tensor([[0, 1, 2, 3]])
    right = 9.0 * nn.functional.one_hot(targets, 5).float()  # (1, T, K)
    wrong = right.roll(1, dims=2)
    result = masked_prediction_loss(
        [SupervisedLayer(nn.Identity(), wrong), SupervisedLayer(nn.Identity(), right)],
        targets,
        torch.ones(1, 4, dtype=torch.bool),
        torch.zeros(()),
        n_clusters=[5],
        masked_frames=4,
        normaliser=4,
    )
    assert int(result.masked.correct) == 4
    assert [int(each.correct) for each in result.intermediate] == [0]


@pytest.fixture
def two_codebooks(prepared: Workspace, tmp_path: Path) -> Workspace:
    """A run whose store has each id twice: as it is, and modulo 3."""
    workspace = Workspace(tmp_path / "run")
    single = TargetStore.open(prepared.folder("it1/label"))
    workspace.root.mkdir()
    workspace.folder("prepare").symlink_to(prepared.folder("prepare"))
    parts = [
        CodebookPart(str(k), (0, k), Codebook(torch.eye(k), {"kind": "test"}, MODEL_GRID))
        for k in (5, 3)
    ]
    workspace.folder("it1/label").mkdir(parents=True)
    manifest = Manifest.open(prepared.folder("prepare"))
    writer = TargetWriter.create(
        workspace.folder("it1/label"), manifest, CodebookSet(tuple(parts), 5)
    )
    for block in writer.pending().tolist():
        ids = [single.targets(row) for row in writer.rows(block).tolist()]
        writer.write(block, [np.stack([each, each % 3], axis=1) for each in ids])
    write_json(
        workspace.folder("it1/label") / META,
        {"format": FORMAT, "fingerprint": "label", "facts": {}},
    )
    return workspace


def test_several_codebooks_through_the_stage(
    two_codebooks: Workspace, recipe: Recipes, tmp_path: Path
) -> None:
    facts = run(recipe(), two_codebooks, "it1/pretrain", tmp_path)
    assert 0 <= facts["masked_accuracy"] <= 1
    row = read_metrics(tmp_path / "logs" / "metrics.csv")[-1]
    for split in ("", "valid/"):
        parts = [row[f"{split}loss/masked/codebook_{n}"] for n in (1, 2)]
        assert row[f"{split}loss/masked"] == pytest.approx(sum(parts), rel=1e-5)
    loaded = load_model(tmp_path)
    assert loaded.config["head"]["n_clusters"] == [5, 3]
    assert loaded.build_head()(torch.randn(2, 16)).shape == (2, 8)


@pytest.mark.parametrize("separate", [False, True])
def test_intermediate_layers_through_the_stage(
    separate: bool, recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    loss = LossConfig(
        supervised_layers=[1, 2], layer_weights=[0.5, 1.0], separate_layer_heads=separate
    )
    run(recipe(loss=loss), prepared, "it1/pretrain", tmp_path)
    row = read_metrics(tmp_path / "logs" / "metrics.csv")[-1]
    assert {"loss/masked/layer_1", "accuracy/masked/layer_1", "valid/loss/masked/layer_1"} <= set(
        row
    )
    head = load_model(tmp_path).build_head()
    assert list(head.state_dict()) == ["unit_embeddings", "projection.weight", "projection.bias"]


def test_a_run_with_heads_of_its_own_layers_resumes(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    values = recipe(loss=LossConfig(supervised_layers=[1, 2], separate_layer_heads=True))
    values.model.do_stable_layer_norm = True
    run(values, prepared, "it1/pretrain", tmp_path / "whole")
    with killed_at_micro_batch(9):
        run(values, prepared, "it1/pretrain", tmp_path / "cut")
    run(values, prepared, "it1/pretrain", tmp_path / "cut")
    one = load_model(tmp_path / "whole").model.state_dict()
    two = load_model(tmp_path / "cut").model.state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_softmax_head_through_the_stage(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    run(recipe(loss=LossConfig(head="softmax")), prepared, "it1/pretrain", tmp_path)
    assert isinstance(load_model(tmp_path).build_head(), SoftmaxHead)


def test_soft_targets_through_the_stage(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distributions that are sure of themselves train as ids do."""
    run(recipe(), prepared, "it1/pretrain", tmp_path / "hard")
    hard = TargetStore.targets
    rows = np.eye(5, dtype=np.float16)
    monkeypatch.setattr(TargetStore, "targets", lambda self, row: rows[hard(self, row)])
    run(recipe(), prepared, "it1/pretrain", tmp_path / "soft")
    one = load_model(tmp_path / "hard").model.state_dict()
    two = load_model(tmp_path / "soft").model.state_dict()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)


def test_only_unmasked_frames(recipe: Recipes, prepared: Workspace, tmp_path: Path) -> None:
    """The paper's negative control: the step is divided by the frames that count."""
    loss = LossConfig(masked_weight=0.0, unmasked_weight=1.0, feature_penalty=0.0)
    run(recipe(loss=loss, steps=3, log_every_steps=1), prepared, "it1/pretrain", tmp_path)
    for row in read_metrics(tmp_path / "logs" / "metrics.csv"):
        assert row["loss"] == pytest.approx(row["loss/unmasked"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "softmx"}, r"loss.head='softmx': expected one of cosine, softmax.*softmax"),
        ({"supervised_layers": [1]}, r"supervised_layers=\[1\]: .* end with the last layer, 2"),
        ({"supervised_layers": [2, 1, 2]}, r"ascending"),
        ({"supervised_layers": [0, 2]}, r"from 1 on"),
        (
            {"supervised_layers": [1, 2], "layer_weights": [1.0]},
            r"layer_weights=\[1.0\]: expected one for each of the 2",
        ),
        ({"layer_weights": [0.0]}, r"layer_weights=\[0.0\]: expected numbers above 0"),
        ({"temperature": 0.0}, r"temperature=0.0"),
        ({"masked_weight": 0.0}, r"not both 0"),
        ({"masked_weight": -1.0, "unmasked_weight": 2.0}, r"0 or more"),
    ],
)
def test_values_that_cannot_be(changes: dict[str, Any], message: str, recipe: Recipes) -> None:
    values = recipe(loss=dataclasses.replace(LossConfig(), **changes))
    values.data.corpus = {}
    values.iterations["it1"].clustering.n_clusters = 5
    with pytest.raises(ConfigError, match=message):
        raise_faults(faults(values))
