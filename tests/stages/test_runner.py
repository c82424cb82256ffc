"""A rank whose first rank died, or has not come yet, before the stage was begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_pretrain import distributed
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ArtefactError, Preempted
from hubert_pretrain.files import write_json
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import FORMAT, META, Workspace
from hubert_pretrain.stages import runner
from hubert_pretrain.stages.runner import run_stage


@pytest.fixture
def second_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, Workspace, Stage]:
    """`it1/cluster` as rank 1 meets it: `prepare` is done, and rank 0 never begins."""
    words = ["+recipe=smoke", f"work_dir={tmp_path}"]
    recipe = compose.recipe_of(words)
    workspace = Workspace(tmp_path)
    stages = {stage.name: stage for stage in plan.stages(recipe)}
    made = {
        "format": FORMAT,
        "fingerprint": plan.fingerprint_of(stages["prepare"], workspace),
        "config": stages["prepare"].config,
        "inputs": {},
    }
    write_json(workspace.folder("prepare") / META, {**made, "facts": {}})
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(runner, "FOLLOW_SECONDS", 0.3)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    return recipe, workspace, stages["it1/cluster"]


def test_it_does_not_wait_for_ever(second_rank: tuple[Recipe, Workspace, Stage]) -> None:
    with pytest.raises(
        ArtefactError,
        match=r"^it1/cluster: rank 0 has not begun after 0\.3 seconds; see what it says",
    ):
        run_stage(*second_rank)


def test_in_a_job_array_it_tries_again_later(
    second_rank: tuple[Recipe, Workspace, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    with pytest.raises(
        Preempted, match=r"rank 0 has not begun after 0\.3 seconds; trying again later"
    ):
        run_stage(*second_rank)


def test_it_leaves_when_the_stage_is_done_meanwhile(
    second_rank: tuple[Recipe, Workspace, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, workspace, stage = second_rank
    # not before it follows, nor when it looks for the first time
    answers = iter([False, False])
    really = workspace.is_done
    monkeypatch.setattr(
        workspace,
        "is_done",
        lambda name: next(answers, True) if name == stage.name else really(name),
    )
    monkeypatch.setattr(runner, "FOLLOW_SECONDS", 30.0)
    assert run_stage(recipe, workspace, stage) is None
    assert next(answers, None) is None
