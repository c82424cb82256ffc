"""fast_base_ls960 and its sister in small: every stage, on generated speech, with log-mel front
ends and frames every 40 and 20 ms.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.flops import training_flops_per_second
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.runner import run_stage
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.training.loggers import read_metrics

SMALL = [
    "model.hidden_size=64",
    "model.num_hidden_layers=4",
    "model.num_attention_heads=4",
    "model.intermediate_size=128",
    "model.num_conv_pos_embeddings=16",
    "model.num_conv_pos_embedding_groups=4",
    "model.layerdrop=0",
    "model.mel_bins=40",
    "data=synthetic_small",
    "trainer=cpu",
    "trainer.threads=1",
    "export.checkpoints=[it2/pretrain]",
    "~finetune.asr",
]


RECIPES = {
    "fast_base_ls960": FrameGrid(window=880, hop=640),
    "fast_base_20ms_ls960": FrameGrid(window=560, hop=320),
}


def composed(*overrides: str, name: str = "fast_base_ls960") -> Recipe:
    words = [f"+recipe={name}", *overrides]
    return compose.recipe_of(words)


def iteration(name: str) -> list[str]:
    values = {
        "steps": 60,
        "batch_seconds": 16,
        "micro_batch_seconds": 16,
        "learning_rate": 2e-3,
        "min_seconds": 1.0,
        "max_crop_seconds": 2.0,
        "max_shapes": 2,
        "loss.supervised_layers": "[2,4]",
        "log_every_steps": 10,
        "valid_every_steps": 60,
        "checkpoint_every_steps": 60,
    }
    words = [f"iterations.{name}.pretrain.{key}={value}" for key, value in values.items()]
    clustering = ("n_clusters=20", "fraction=1.0", "restarts=2")
    return words + [f"iterations.{name}.clustering.{word}" for word in clustering]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RECIPES)
def test_every_stage_runs_and_the_loss_falls(name: str, tmp_path: Path) -> None:
    words = [
        *SMALL,
        *iteration("it1"),
        *iteration("it2"),
        "iterations.it2.features.layer=2",
        f"work_dir={tmp_path}",
    ]
    recipe = composed(*words, name=name)
    grid = RECIPES[name]
    workspace = Workspace(tmp_path)
    for stage in plan.stages(recipe):
        run_stage(recipe, workspace, stage)
    for number in ("it1", "it2"):
        assert TargetStore.open(workspace.folder(f"{number}/label")).grid == grid
        rows = read_metrics(workspace.folder(f"{number}/pretrain") / "logs" / "metrics.csv")
        losses = [float(row["loss/masked"]) for row in rows if row.get("loss/masked")]
        early = [
            float(row["loss/masked/layer_2"]) for row in rows if row.get("loss/masked/layer_2")
        ]
        assert losses[-1] < 0.9 * losses[0]
        assert early[-1] < 0.9 * early[0]
        assert losses[-1] < np.log(20)
    loaded = load_model(workspace.folder("it2/pretrain"))
    assert (loaded.model.grid, loaded.config["head"]) == (
        grid,
        {"hidden_size": 64, "n_clusters": 20},
    )
    report = json.loads((workspace.folder("export") / "report.json").read_text())
    assert max(report["it2/pretrain"].values()) < 1e-4


@pytest.mark.parametrize(
    ("name", "gflop"),
    [("fast_base_ls960", 14.2), ("fast_base_20ms_ls960", 31.2), ("ls100_one_gpu", 8.9)],
)
def test_work_of_the_recipes_is_what_their_readmes_say(
    name: str, gflop: float, tmp_path: Path
) -> None:
    model = composed(f"data.root={tmp_path}", name=name).model
    assert training_flops_per_second(model, head="softmax", supervised_layers=2) == pytest.approx(
        gflop * 1e9, rel=0.01
    )
    assert f"{gflop} GFLOP" in (compose.recipe_files()[name].parent / "README.md").read_text()
    assert model.grid == RECIPES.get(name, RECIPES["fast_base_20ms_ls960"])


def test_units_of_speech_recognition_follow_the_frame_rate(tmp_path: Path) -> None:
    """25 frames a second are few for letters."""
    words = [f"data.root={tmp_path}"]
    tasks = {name: composed(*words, name=name).finetune["asr"].task for name in RECIPES}
    assert tasks["fast_base_ls960"]["units"] == "pieces"
    assert tasks["fast_base_20ms_ls960"]["units"] == "characters"


def test_a_second_of_context_is_a_second_at_both_rates(tmp_path: Path) -> None:
    """Spans of 200 ms and a positional convolution of 2.56 s, whatever a frame is."""
    for name, grid in RECIPES.items():
        recipe = composed(f"data.root={tmp_path}", name=name)
        masks = [recipe.iterations[number].pretrain.mask for number in ("it1", "it2")] + [
            recipe.finetune["asr"].mask
        ]
        assert [mask.span_frames * grid.hop for mask in masks] == [3200] * 3
        assert recipe.model.num_conv_pos_embeddings * grid.hop == 40_960


def test_features_on_another_grid_than_the_model_are_refused_before_anything_runs(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"set iterations.it1.features.hop_seconds=0.02 and .*window_seconds=0.035",
    ):
        composed(f"data.root={tmp_path}", "model.mel_stack=2")
    composed(
        f"data.root={tmp_path}",
        "model.mel_stack=2",
        "iterations.it1.features.hop_seconds=0.02",
        "iterations.it1.features.window_seconds=0.035",
    )
    with pytest.raises(ConfigError, match="freeze_conv_after_steps"):
        composed(f"data.root={tmp_path}", "iterations.it1.pretrain.freeze_conv_after_steps=5")
