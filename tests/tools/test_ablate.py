"""`hubert-pretrain ablate`: trainings of every variant and seed, done once each, and one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hubert_pretrain.config import compose
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.texts import count_errors
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.runner import run_stage
from hubert_pretrain.tools import ablate
from tests.finetune.conftest import TINY, make_corpus

IT2 = ["--variant", "it2"]
RANDOM = ["--variant", "random", "checkpoint=null", "conv_gradient_scale=1.0"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a prepared corpus and a pretrained encoder; stages are run in this process."""
    manifest = make_corpus(tmp_path / "corpus", utterances=18).manifest
    lines = ["path,split,text"]
    for number in range(len(manifest)):
        utterance = manifest[number]
        lines.append(f"{utterance.path},{('train', 'valid', 'test')[number % 3]},{utterance.text}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    workspace = Workspace(tmp_path / "run")
    words = [f"data.root={tmp_path}/list.csv", "data.workers=1", "trainer.threads=1"]
    recipe = compose.recipe_of(
        ["+recipe=demo", "data=manifest", *words, f"work_dir={workspace.root}"]
    )
    recipe.model = TINY
    asr = recipe.finetune["asr"]
    asr.steps = 4
    asr.batch_seconds = asr.micro_batch_seconds = 3.0
    asr.valid_every_steps = 2
    run_stage(recipe, workspace, plan.stages(recipe)[0])
    head = CodebookHead(TINY.hidden_size, 8, 5)
    save_model(workspace.begin("it2/pretrain", "q", {}), Hubert(TINY), head=head)
    workspace.finish("it2/pretrain", {"fingerprint": "q", "facts": {}})
    whole = OmegaConf.to_yaml(OmegaConf.structured(recipe))
    workspace.recipe_path.write_text(whole)
    monkeypatch.setattr(ablate, "train_and_score", train_and_score)
    return workspace.root


def train_and_score(folder: Path, words: list[str]) -> None:
    recipe = compose.recipe_of([f"+recipe={folder / ablate.RECIPE}", *words])
    workspace = Workspace(recipe.work_dir)
    for stage in plan.stages(recipe)[1:]:  # prepare is the run's
        run_stage(recipe, workspace, stage)


def test_variants_and_seeds_are_trained_once_and_compared(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate.main([str(run), "asr", "--seeds", "1", *IT2]) == 0
    folder = run / "ablate" / "asr"
    first = (folder / "finetune/asr-it2-1/meta.json").read_bytes()
    assert ablate.main([str(run), "asr", "--seeds", "2", *IT2, *RANDOM]) == 0
    assert (folder / "finetune/asr-it2-1/meta.json").read_bytes() == first
    names = {path.name for path in (folder / "finetune").iterdir()}
    assert names == {f"asr-{variant}-{seed}" for variant in ("it2", "random") for seed in (1, 2)}

    results = json.loads((folder / ablate.RESULTS).read_text())
    assert list(results) == ["it2", "random"]
    assert results["random"]["settings"] == ["checkpoint=null", "conv_gradient_scale=1.0"]
    for name, found in results.items():
        errors = units = 0
        for seed, rate in zip((1, 2), found["rates"]["cer"]["seeds"], strict=True):
            place = folder / "evaluate" / f"asr-{name}-{seed}" / "test" / "hypotheses.tsv"
            rows = [line.split("\t") for line in place.read_text().splitlines()[1:]]
            own = count_errors([row[1] for row in rows], [row[2] for row in rows], "characters")
            assert rate == pytest.approx(own.rate())
            errors += own.ratios[:, 0].sum()
            units += own.ratios[:, 1].sum()
        assert found["rates"]["cer"]["pooled"]["value"] == pytest.approx(errors / units)
    weights = [
        (folder / "finetune" / name / "model.safetensors").read_bytes()
        for name in ("asr-it2-1", "asr-it2-2")
    ]
    assert weights[0] != weights[1]  # the seeds differ
    assert (folder / ablate.TABLE).read_text() in capsys.readouterr().out


def test_classes_have_an_error_rate(tmp_path: Path) -> None:
    rows = [
        {"id": "b", "reference": "x", "prediction": "y"},
        {"id": "a", "reference": "x", "prediction": "x"},
    ]
    (tmp_path / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ablate.read_counts(tmp_path)["error rate"].tolist() == [[0, 1], [1, 1]]
    assert Sampling().confidence == 0.95  # what the table says


def test_what_cannot_be_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["asrr", *IT2], "has no task 'asrr'"),
        (["asr", *IT2, *IT2], "--variant it2: is given twice"),
        (["asr", "--variant", "checkpoint=it1/pretrain"], "expected a name of letters"),
        (["asr", "--variant", "it1", "it1/pretrain"], "'it1/pretrain', expected KEY=VALUE"),
        (["asr", "--seeds", "0", *IT2], "--seeds 0: expected 1 or more"),
    ):
        assert ablate.main([str(run), *words]) != 0
        assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate.main([str(tmp_path), "asr", *IT2]) != 0
    assert "recipe.yaml: no such file; name the folder of a run" in capsys.readouterr().err
