"""Recordings of one's own: without labels, and a recipe that only fine-tunes or only exports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError, HubertPretrainError
from hubert_pretrain.files import read_json
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan, summary
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import check
from hubert_pretrain.stages.runner import run_stage

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
FINE_TUNING = """\
defaults:
  - /finetune@finetune.asr: ctc
  - _self_
  - override /data: folder
  - override /model: tiny
  - override /trainer: cpu
name: only_asr
finetune:
  asr:
    checkpoint: pretrained
    steps: 2
    batch_seconds: 8
    micro_batch_seconds: 8
    valid_every_steps: 2
trainer: {loader_workers: 0, progress_bar: false}
export: {checkpoints: [finetune/asr]}
"""
EXPORT = """\
defaults: [_self_, {override /model: tiny}]
name: only_export
export: {checkpoints: [pretrained], format: fairseq}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with recordings in `audio`, a table of them, and a checkpoint in `pretrained`."""
    draw = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    rows = ["path,text,split"]
    for number in range(12):
        name = f"{number:02d}.wav"
        noise = 0.1 * draw.standard_normal(33_000 + 100 * number)
        soundfile.write(tmp_path / "audio" / name, noise, 16_000)
        split = {10: "valid", 11: "test"}.get(number, "train")
        rows.append(f"{name},hello you,{split}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    save_model(tmp_path / "pretrained", Hubert(SMALL), head=CodebookHead(16, 8, 5))
    for name, text in (("only_asr", FINE_TUNING), ("only_export", EXPORT)):
        (tmp_path / "recipes" / name).mkdir(parents=True)
        (tmp_path / "recipes" / name / "recipe.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composed(*words: str) -> Recipe:
    return compose.recipe_of(list(words))


def run(*words: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hubert_pretrain.run", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        check=False,
    )


def test_tasks_that_the_corpus_cannot_teach_stop_the_run_after_prepare(place: Path) -> None:
    """Not after both pretrainings: the command goes no further, also when it is given again."""
    words = ["+recipe=demo", "data=folder", f"data.root={place}/audio", "work_dir=run"]
    for _ in range(2):
        result = run(*words)
        assert result.returncode == 1, result.stdout + result.stderr
        asr, speakers, advice = result.stderr.strip().splitlines()[-3:]
        assert "finetune/asr: " in asr
        assert "finetune/speakers: " in speakers
        assert "split 'test' has no utterances" in asr
        assert advice == (
            "nothing was trained yet. Give the corpus those labels, or leave the tasks out: "
            "'~finetune.asr' '~finetune.speakers' 'export.checkpoints=[it2/pretrain]'; "
            "+recipe=my_audio needs no labels"
        )
        assert not list((place / "run").glob("it1*"))
    assert (place / "run" / "prepare" / "meta.json").is_file()


def test_the_first_job_of_a_chain_finds_the_same(place: Path) -> None:
    words = ["+recipe=demo", "data=folder", f"data.root={place}/audio", "stage=prepare"]
    assert run(*words).returncode == 0
    result = run(*words, "check.labels=true")
    assert result.returncode == 1
    assert "finetune/asr: " in result.stderr


def test_the_advice_leaves_a_recipe_that_runs(place: Path) -> None:
    recipe = composed(
        "+recipe=demo", "data=folder", f"data.root={place}/audio", "~finetune.asr",
        "~finetune.speakers", "export.checkpoints=[it2/pretrain]",
    )  # fmt: skip
    run_stage(recipe, Workspace(recipe.work_dir), plan.find(recipe, "prepare"))
    check.check_labels(recipe, Workspace(recipe.work_dir))


def test_a_recipe_that_only_fine_tunes(place: Path) -> None:
    words = [
        "+recipe=only_asr",
        "data.root=audio",
        f"data.corpus.table={place}/table.csv",
        "check.labels=true",
    ]
    recipe = composed(*words)
    workspace = Workspace(recipe.work_dir)
    stages = plan.stages(recipe)
    assert [stage.name for stage in stages] == [
        "prepare",
        "finetune/asr",
        "evaluate/asr/test",
        "export",
    ]
    for stage in stages:
        run_stage(recipe, workspace, stage)
    check.run(recipe, workspace)
    rows = {row["name"]: row["state"] for row in (read_json(workspace.check_path) or {})["rows"]}
    assert "finetune/asr" in rows
    assert not [name for name in rows if name.startswith(("crops", "loader", "targets"))]
    facts = summary.collect(recipe, workspace)["finetune"]["asr"]
    assert facts["steps"] == 2
    assert load_checkpoint(workspace.folder("export/finetune/asr")).kind == "ctc"


def test_a_recipe_that_only_exports(place: Path) -> None:
    recipe = composed("+recipe=only_export")
    workspace = Workspace(recipe.work_dir)
    check.run(recipe, workspace)
    (stage,) = plan.stages(recipe)
    run_stage(recipe, workspace, stage)
    collected = summary.collect(recipe, workspace)
    assert (collected["data"], collected["iterations"]) == (None, {})
    assert load_checkpoint(f"{collected['export']['path']}/checkpoint.pt").kind == "pretrain"


def test_a_recipe_without_any_stage_is_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="the recipe has no stages; give it iterations"):
        composed("+recipe=only_export", "export.checkpoints=[]")


def test_the_check_of_one_task_looks_at_that_task(place: Path) -> None:
    """Crops of iterations that nobody runs are no fault."""
    words = [
        "+recipe=demo",
        "data=folder",
        "data.root=audio",
        f"data.corpus.table={place}/table.csv",
        "finetune.asr.checkpoint=pretrained",
    ]
    recipe = composed(*words)
    workspace = Workspace(recipe.work_dir)
    run_stage(recipe, workspace, plan.find(recipe, "prepare"))
    with pytest.raises(HubertPretrainError, match=r"errors in .*finetune/speakers"):
        check.run(recipe, workspace)
    check.run(composed(*words, "check.stages=[finetune/asr]"), workspace)
    with pytest.raises(ConfigError, match=r"no such stage 'finetune/asd' \(did you mean"):
        check.run(composed(*words, "check.stages=[finetune/asd]"), workspace)


@pytest.mark.slow
def test_recordings_without_labels_from_audio_to_export(place: Path) -> None:
    """The third command of README.md, with few steps."""
    words = ["+recipe=my_audio", f"data.root={place}/audio", "trainer.loader_workers=0"]
    for name in ("it1", "it2"):
        words += [
            f"iterations.{name}.clustering.n_clusters=5",
            f"iterations.{name}.clustering.restarts=1",
            f"iterations.{name}.pretrain.steps=3",
            f"iterations.{name}.pretrain.batch_seconds=4",
            f"iterations.{name}.pretrain.micro_batch_seconds=4",
        ]
    result = run(*words)
    assert result.returncode == 0, result.stdout + result.stderr
    found = read_json(place / "runs" / "my_audio" / "summary.json") or {}
    assert {stage["state"] for stage in found["stages"]} == {"done"}
    assert found["iterations"]["it2"]["masked_loss_nats"] > 0
    assert load_checkpoint(found["export"]["path"]).kind == "pretrain"
