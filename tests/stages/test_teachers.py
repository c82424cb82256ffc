"""Teachers of iterations: a task of the same recipe, and those that cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hubert_pretrain import run
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.cluster import open_codebooks
from hubert_pretrain.stages.extraction import check_teachers, extraction
from hubert_pretrain.stages.label import open_targets
from hubert_pretrain.stages.runner import run_stage

TINY = [
    "+recipe=smoke",
    "data.corpus.minutes=0.4",
    "model.conv_dim=[8,8,8,8,8,8,8]",
    "model.hidden_size=16",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "~finetune.speakers",
    "export.checkpoints=[]",
    "iterations.it2.features.checkpoint=finetune/asr",
    "iterations.it2.pretrain.start_from=null",
    "iterations.it2.features.layer=2",
    "finetune.asr.checkpoint=it1/pretrain",
    *(
        f"iterations.{name}.{key}"
        for name in ("it1", "it2")
        for key in (
            "clustering.n_clusters=8",
            "pretrain.steps=4",
            "pretrain.probe.every_steps=0",
            "pretrain.batch_seconds=4",
            "pretrain.micro_batch_seconds=4",
        )
    ),
    "finetune.asr.steps=4",
]


def names(recipe: Recipe) -> list[str]:
    return [stage.name for stage in plan.stages(recipe)]


def test_a_task_that_is_a_teacher_is_trained_before_its_iteration() -> None:
    recipe = compose.recipe_of(["+recipe=semi_supervised_ls960", "data.root=/"])
    assert names(recipe) == [
        "prepare",
        *("it1/cluster", "it1/label", "it1/pretrain"),
        *("it2/cluster", "it2/label", "it2/pretrain"),
        "finetune/asr",
        *("it3/cluster", "it3/label", "it3/pretrain"),
        "finetune/asr_of_it3",
        *("evaluate/asr/test-clean", "evaluate/asr/test-other"),
        *("evaluate/asr_of_it3/test-clean", "evaluate/asr_of_it3/test-other"),
        "export",
    ]
    assert plan.find(recipe, "it3/cluster").inputs == ("prepare", "finetune/asr")
    followers = plan.with_followers([plan.find(recipe, "finetune/asr")], plan.stages(recipe))
    assert "it3/pretrain" in {stage.name for stage in followers}


def test_a_teacher_that_goes_on_from_a_task_follows_it() -> None:
    recipe = compose.recipe_of(
        [
            *TINY,
            "finetune.first=${finetune.asr}",
            "finetune.asr.checkpoint=finetune/first",
            "finetune.first.checkpoint=it1/pretrain",
        ]
    )
    assert names(recipe)[3:6] == ["it1/pretrain", "finetune/first", "finetune/asr"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["finetune.asr.checkpoint=it2/pretrain"],
            "it2/cluster reads finetune/asr reads it2/pretrain: a circle",
        ),
        (
            ["iterations.it1.features=${iterations.it2.features}"],
            "it1/cluster reads finetune/asr reads it1/pretrain: a circle",
        ),
        (
            ["iterations.it2.features.checkpoint=finetune/asl"],
            r"it2/cluster reads 'finetune/asl', which is neither an earlier stage "
            r"\(did you mean",
        ),
        (
            [
                "features@iterations.it1.features=hubert_layer",
                "iterations.it1.features.checkpoint=it2/pretrain",
                "iterations.it1.features.layer=1",
            ],
            "it1/cluster reads 'it2/pretrain', which runs after it",
        ),
        (["iterations.it2.features.layer=3"], r"it2.features.layer=3: expected 1 to 2"),
    ],
)
def test_teachers_that_cannot_be(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.stages(compose.recipe_of([*TINY, *words]))


def test_frames_of_another_grid_are_refused_before_clustering(tmp_path: Path) -> None:
    recipe = compose.recipe_of([*TINY, "iterations.it1.features.hop_seconds=0.02"])
    recipe.iterations["it1"].features["hop_seconds"] = 0.03
    with (
        pytest.raises(ConfigError, match=r"it1.features: frames 0.03 s .* are 0.02 s apart"),
        extraction(recipe, Workspace(tmp_path), "it1"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_targets_of_a_fine_tuned_network(tmp_path: Path) -> None:
    """prepare to it2/pretrain, and the layer that is clustered is the task's, not pretraining's."""
    pytest.importorskip("espeakng_loader")
    recipe = compose.recipe_of([*TINY, f"work_dir={tmp_path}"])
    workspace = Workspace(tmp_path)
    for stage in plan.stages(recipe):
        if stage.verb != "evaluate":
            run_stage(recipe, workspace, stage)
    features = open_codebooks(recipe, workspace, "it2").features
    meta = workspace.artefact("finetune/asr").meta
    assert features["weights_sha256"] == meta["sha256"]["model.safetensors"]
    assert open_targets(workspace, "it2").sizes == [8]
    assert workspace.artefact("it2/pretrain").meta["inputs"].keys() == {"prepare", "it2/label"}
    assert all(plan.state(stage, workspace) == plan.DONE for stage in plan.stages(recipe)[:8])


def test_a_teacher_with_other_frames_is_refused_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of a later iteration, which would be reached after days of training."""
    monkeypatch.chdir(tmp_path)
    teacher = HubertConfig(
        front_end="log_mel",
        mel_stack=3,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    save_model(tmp_path / "teacher", Hubert(teacher))
    words = [*TINY, "features@iterations.it2.features=hubert_layer", "~finetune.asr"]
    words += [f"iterations.it2.features.checkpoint={tmp_path / 'teacher'}", "export.checkpoints=[]"]
    recipe = compose.recipe_of([*words, "iterations.it2.features.layer=1", f"work_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"it2.features.checkpoint=.*: frames 0.03 s apart, but"):
        run._run(OmegaConf.structured(recipe), [])
    assert not (tmp_path / "prepare").exists()
    save_model(tmp_path / "teacher", Hubert(dataclasses.replace(teacher, mel_stack=4)))
    check_teachers(recipe, Workspace(tmp_path))
