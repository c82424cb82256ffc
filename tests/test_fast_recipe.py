"""fast_base_ls960 in small: every stage of it, on generated speech, with a log-mel front end and a frame every 40 ms. It learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from hubert_pretrain import compose, pipeline
from hubert_pretrain.config import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.flops import training_flops_per_second
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.workspace import Workspace

SMALL = [
    *("model.hidden_size=64", "model.num_hidden_layers=4", "model.num_attention_heads=4", "model.intermediate_size=128"),
    *("model.num_conv_pos_embeddings=16", "model.num_conv_pos_embedding_groups=4", "model.layerdrop=0", "model.mel_bins=40"),
    *("data=synthetic_small", "trainer=cpu", "trainer.threads=1"),
    *("export.checkpoints=[it2/pretrain]", "~finetune.letters"),
]


def composed(*overrides: str) -> Recipe:
    compose.register()
    words = ["+recipe=fast_base_ls960", *overrides]
    with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
        return compose.validate(hydra_compose("config", overrides=words), words)


def iteration(name: str) -> list[str]:
    values = {
        **{"steps": 60, "batch_seconds": 16, "micro_batch_seconds": 16, "learning_rate": 2e-3, "min_seconds": 1.0, "max_crop_seconds": 2.0},
        **{
            "max_shapes": 2,
            "loss.supervised_layers": "[2,4]",
            "log_every_steps": 10,
            "valid_every_steps": 60,
            "checkpoint_every_steps": 60,
        },
    }
    words = [f"iterations.{name}.pretrain.{key}={value}" for key, value in values.items()]
    return [*words, *(f"iterations.{name}.clustering.{word}" for word in ("n_clusters=20", "fraction=1.0", "restarts=2"))]


@pytest.mark.filterwarnings("ignore")
def test_every_stage_runs_and_the_loss_falls(tmp_path: Path) -> None:
    recipe = composed(*SMALL, *iteration("it1"), *iteration("it2"), "iterations.it2.features.layer=2", f"work_dir={tmp_path}")
    workspace = Workspace(tmp_path)
    for stage in pipeline.stages(recipe):
        pipeline.run_stage(recipe, workspace, stage)
    grid = FrameGrid(window=880, hop=640)
    for name in ("it1", "it2"):
        assert TargetStore.open(workspace.folder(f"{name}/label")).grid == grid
        rows = read_metrics(workspace.folder(f"{name}/pretrain") / "logs" / "metrics.csv")
        losses = [float(row["loss/masked"]) for row in rows if row.get("loss/masked")]
        early = [float(row["loss/masked/layer_2"]) for row in rows if row.get("loss/masked/layer_2")]
        assert losses[-1] < 0.9 * losses[0]
        assert early[-1] < 0.9 * early[0]
        assert losses[-1] < np.log(20)
    loaded = load_model(workspace.folder("it2/pretrain"))
    assert (loaded.model.grid, loaded.config["head"]) == (grid, {"hidden_size": 64, "n_clusters": 20})
    report = json.loads((workspace.folder("export") / "report.json").read_text())
    assert max(report["it2/pretrain"].values()) < 1e-4


def test_work_of_the_recipe(tmp_path: Path) -> None:
    fast, base = composed(f"data.root={tmp_path}").model, Recipe().model
    work = training_flops_per_second(fast, head="softmax", supervised_layers=2)
    assert training_flops_per_second(base) / work > 3.06
    assert fast.grid == FrameGrid(window=880, hop=640)


def test_features_on_another_grid_than_the_model_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set iterations.it1.features.hop_seconds=0.02 and .*window_seconds=0.035"):
        composed(f"data.root={tmp_path}", "model.mel_stack=2")
    composed(
        f"data.root={tmp_path}",
        "model.mel_stack=2",
        "iterations.it1.features.hop_seconds=0.02",
        "iterations.it1.features.window_seconds=0.035",
    )
    with pytest.raises(ConfigError, match="freeze_conv_after_steps"):
        composed(f"data.root={tmp_path}", "iterations.it1.pretrain.freeze_conv_after_steps=5")
