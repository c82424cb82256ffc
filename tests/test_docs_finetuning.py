"""The example of docs/finetuning.md, "Your own task", runs as it is written there, with a tiny
encoder and few steps.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from hubert_pretrain.config import compose
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.runner import run_stage
from tests.finetune.conftest import TINY, make_corpus

PAGE = Path(__file__).resolve().parent.parent / "docs" / "finetuning.md"
AGES = (25, 45, 70)
QUICK = ["steps=4", "batch_seconds=4", "micro_batch_seconds=4", "valid_every_steps=2"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `people.csv`, `recordings` and `hubert_base_ls960.pt`, as the page supposes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ages", raising=False)
    torch.manual_seed(0)
    save_model(tmp_path / "hubert_base_ls960.pt", Hubert(TINY), head=CodebookHead(16, 8, 5))
    corpus = make_corpus(tmp_path / "recordings", utterances=18)
    lines = ["path,split,label,speaker"]
    for number in range(len(corpus.manifest)):
        split = ("train", "valid", "test")[number // 3 % 3]
        path = corpus.manifest[number].path
        lines.append(f"{path},{split},{AGES[number % 3]},speaker {number}")
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_task_of_the_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text()
    section = page[page.index("## Your own task") : page.index("## Results")]
    module, recipe_file, commands = re.findall(r"```\w*\n(.*?)```", section, flags=re.DOTALL)
    (place / "ages.py").write_text(module)
    (place / "recipes" / "ages").mkdir(parents=True)
    (place / "recipes" / "ages" / "recipe.yaml").write_text(recipe_file)
    export, train, evaluate, classify = commands.splitlines()
    assert export == "export PYTHONPATH=."

    words = shlex.split(train)[1:]
    quick = [f"finetune.age.{word}" for word in QUICK]
    recipe = compose.recipe_of([*words, *quick, "trainer=cpu", "data.workers=1"])
    workspace = Workspace(recipe.work_dir)
    for stage in plan.stages(recipe):
        run_stage(recipe, workspace, stage)
    facts = workspace.artefact("finetune/age").facts
    assert facts["best_by"] == "valid/group_distance"
    tested = workspace.artefact("evaluate/age/test").facts
    assert set(tested["intervals"]) >= {"group_distance", "accuracy"}
    rows = workspace.folder("evaluate/age/test") / "utterances.jsonl"
    references = [json.loads(line)["reference"] for line in rows.read_text().splitlines()]
    assert sorted(references) == ["0", "0", "1", "1", "2", "2"]

    capsys.readouterr()
    for line, expected in ((evaluate, "group_distance"), (classify, "utterance-004")):
        _, command, *words = shlex.split(line)
        assert importlib.import_module(f"hubert_pretrain.tools.{command}").main(words) == 0
        assert expected in capsys.readouterr().out, line
