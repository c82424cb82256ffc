"""Stage evaluate on a corpus of tones: any checkpoint on any split, and what cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import EvaluateConfig, FinetuneConfig, Recipe, TrainerConfig
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.finetune.metrics import word_error_rate
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.interop.fairseq_writer import export_fairseq
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.heads import ClassificationHead, CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import evaluate
from tests.finetune.conftest import TINY, make_corpus

CTC = {"_target_": "hubert_pretrain.finetune.ctc.CtcTask"}
SPEAKERS = {"_target_": "hubert_pretrain.finetune.classify.ClassifyTask", "label": "speaker"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A run with a corpus of the splits train, valid, test and other, and fine-tuned models."""
    workspace = Workspace(tmp_path / "run")
    folder = workspace.begin("prepare", "p", {})
    make_corpus(folder, split=lambda number: ["train", "valid", "test", "other"][number % 4])
    workspace.finish("prepare", {"fingerprint": "p", "facts": {}})
    torch.manual_seed(0)
    model = Hubert(TINY)
    vocabulary = Vocabulary.of_texts(["ABCD"])
    heads = {
        "asr": (CTCHead(16, len(vocabulary)), {"vocabulary": list(vocabulary.symbols)}),
        "speakers": (
            ClassificationHead(16, 2, n_layers=2, weighted_layers=True),
            {"classes": ["buzzing", "pure"], "label": "speaker", "task": SPEAKERS},
        ),
    }
    for name, (head, extra) in heads.items():
        save_model(workspace.begin(f"finetune/{name}", name, {}), model, head=head, extra=extra)
        workspace.finish(f"finetune/{name}", {"fingerprint": name, "facts": {}})
    return workspace


def recipe(**evaluations: EvaluateConfig) -> Recipe:
    tasks = {
        "asr": FinetuneConfig(task=CTC, checkpoint="/", test_split=["test", "other"]),
        "speakers": FinetuneConfig(task=SPEAKERS, checkpoint="/"),
    }
    return Recipe(
        name="tones",
        finetune=tasks,
        evaluate=evaluations,
        trainer=TrainerConfig(accelerator="cpu"),
    )


def run(workspace: Workspace, stage: str, **evaluations: EvaluateConfig) -> dict[str, Any]:
    folder = workspace.begin(stage, "e", {})
    facts = evaluate.run(recipe(**evaluations), workspace, stage, folder)
    workspace.finish(stage, {"fingerprint": "e", "facts": facts})
    return facts


def rows_of(workspace: Workspace, stage: str) -> list[dict[str, Any]]:
    lines = (workspace.folder(stage) / "utterances.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_each_split_is_scored_apart(workspace: Workspace) -> None:
    names = [stage.name for stage in plan.stages(recipe(x=EvaluateConfig(checkpoint="/")))]
    assert names[3:] == [
        "evaluate/asr/test",
        "evaluate/asr/other",
        "evaluate/speakers/test",
        "evaluate/x/test",
    ]
    facts = {split: run(workspace, f"evaluate/asr/{split}") for split in ("test", "other")}
    corpus = Corpus.open(workspace.artefact("prepare").path)
    recogniser = SpeechRecognizer.load(workspace.folder("finetune/asr"))
    for split, found in facts.items():
        rows = rows_of(workspace, f"evaluate/asr/{split}")
        utterances = [corpus.manifest[int(row)] for row in corpus.manifest.rows(split)]
        assert [row["id"] for row in rows] == [utterance.id for utterance in utterances]
        for row, utterance in zip(rows, utterances, strict=True):
            assert row["hypothesis"] == recogniser.transcribe(utterance.path)
            assert row["reference"] == " ".join(utterance.text.split())
            assert row["speaker"] == utterance.speaker
        expected = word_error_rate(
            [row["reference"] for row in rows], [row["hypothesis"] for row in rows]
        )
        assert found["wer"] == pytest.approx(expected)
        low, high = found["intervals"]["wer"]
        assert low <= found["wer"] <= high
        stored = evaluate.open_evaluation(workspace, "asr", split)
        assert stored["scores"]["wer"]["value"] == pytest.approx(expected)
        assert (stored["split"], stored["utterances"]) == (split, found["utterances"])
    files = {path.name for path in workspace.folder("evaluate/asr/test").iterdir()}
    assert files >= {
        "evaluation.json",
        "report.md",
        "hypotheses.tsv",
        "utterances.jsonl",
        "references.trn",
        "hypotheses.trn",
        "normalisation.json",
    }


def test_classes_have_their_tables(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = run(workspace, "evaluate/speakers/test")
    low, high = facts["intervals"]["accuracy"]
    shown = f"evaluate/speakers/test: accuracy {facts['accuracy']:.3f} [{low:.3f}, {high:.3f}], "
    assert shown in capsys.readouterr().out
    assert set(facts["intervals"]) == {"accuracy", "unweighted_accuracy", "macro_f1"}
    stored = evaluate.open_evaluation(workspace, "speakers", "test")
    assert [row["class"] for row in stored["tables"]["by class"]] == ["buzzing", "pure"]
    assert (workspace.folder("evaluate/speakers/test") / "confusion.tsv").is_file()


@pytest.mark.parametrize("kind", ["ours", "huggingface", "fairseq"])
@pytest.mark.parametrize("task", ["asr", "speakers"])
def test_any_checkpoint_is_scored_alike(
    workspace: Workspace, tmp_path: Path, kind: str, task: str
) -> None:
    """Its task is found out: an export does not state it."""
    loaded = load_model(workspace.folder(f"finetune/{task}"))
    if (kind, task) == ("fairseq", "speakers"):
        pytest.skip("fairseq has no such head")
    path = workspace.folder(f"finetune/{task}")
    if kind == "huggingface":
        path = tmp_path / "exported"
        export_huggingface(path, loaded)
    if kind == "fairseq":
        path = tmp_path / "exported.pt"
        export_fairseq(path, loaded)
    expected = run(workspace, f"evaluate/{task}/test")
    node = None if kind == "ours" or task == "asr" else SPEAKERS
    config = EvaluateConfig(checkpoint=str(path), splits="test", task=node)
    found = run(workspace, "evaluate/again/test", again=config)
    assert {**found, "checkpoint": ""} == {**expected, "checkpoint": ""}


def test_scores_do_not_depend_on_another_run(workspace: Workspace) -> None:
    """The draws of the bootstrap come from the seed of the recipe."""
    first = run(workspace, "evaluate/asr/test")
    workspace.discard("evaluate/asr/test")
    assert run(workspace, "evaluate/asr/test") == first


def test_a_missing_split_names_the_others(workspace: Workspace) -> None:
    with pytest.raises(
        DataError, match=r"split 'tets' .*did you mean 'test'.*evaluate\.asr\.splits"
    ):
        run(workspace, "evaluate/asr/tets")


def test_a_checkpoint_without_a_head_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    save_model(tmp_path / "pretrained", Hubert(TINY), head=CodebookHead(16, 8, 5))
    config = EvaluateConfig(checkpoint=str(tmp_path / "pretrained"))
    with pytest.raises(ArtefactError, match="'pretrain' checkpoint without the head of a task"):
        run(workspace, "evaluate/x/test", x=config)
    config = EvaluateConfig(checkpoint="finetune/speakers", task=CTC)
    with pytest.raises(ArtefactError, match="'classify' checkpoint, the task is 'ctc'"):
        run(workspace, "evaluate/x/test", x=config)


def test_a_split_without_transcripts_is_refused(workspace: Workspace) -> None:
    make_corpus(workspace.folder("prepare"), text="", split="test")
    with pytest.raises(DataError, match=r"none of the 24 utterances of split 'test' has a trans"):
        run(workspace, "evaluate/asr/test")


def test_empty_references_are_counted(workspace: Workspace) -> None:
    make_corpus(
        workspace.folder("prepare"), split="test", text=lambda number: "A B" if number else ""
    )
    facts = run(workspace, "evaluate/asr/test")
    assert any("1 of 24 references are empty" in message for message in facts["warnings"])


def test_unknown_classes_are_named(workspace: Workspace) -> None:
    make_corpus(workspace.folder("prepare"), split="test", speaker=lambda n: f"voice {n % 2}")
    with pytest.raises(DataError, match=r"split 'test' has 2 speaker values that the head of"):
        run(workspace, "evaluate/speakers/test")


def test_a_new_checkpoint_makes_the_scores_stale(workspace: Workspace) -> None:
    """And scores of another split leave those of the first as they are."""
    chosen = recipe()
    (stage,) = plan.matching(chosen, "evaluate/asr/test")
    assert [each.name for each in plan.matching(chosen, "evaluate")] == [
        "evaluate/asr/test",
        "evaluate/asr/other",
        "evaluate/speakers/test",
    ]
    before = plan.fingerprint_of(stage, workspace)
    chosen.finetune["asr"].test_split = "test"
    (again,) = plan.matching(chosen, "evaluate/asr")
    assert plan.fingerprint_of(again, workspace) == before
    workspace.discard("finetune/asr")
    save_model(workspace.begin("finetune/asr", "new", {}), Hubert(TINY), head=CTCHead(16, 7))
    workspace.finish("finetune/asr", {"fingerprint": "new", "facts": {}})
    assert plan.fingerprint_of(again, workspace) != before
