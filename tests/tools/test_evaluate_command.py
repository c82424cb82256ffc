"""`hubert-pretrain evaluate` and `hubert-pretrain classify`."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.heads import ClassificationHead, CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.tools import classify as classify_command
from hubert_pretrain.tools import evaluate as evaluate_command
from tests.finetune.conftest import TINY, make_corpus


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a prepared corpus, a table of the same recordings, and models."""
    corpus = make_corpus(tmp_path / "prepared")
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "id", "speaker", "sentence", "split"])
        for row in range(len(corpus.manifest)):
            one = corpus.manifest[row]
            writer.writerow([one.path, one.id, one.speaker, one.text, one.split])
    torch.manual_seed(0)
    model = Hubert(TINY)
    symbols = Vocabulary.of_texts(["ABCD"]).symbols
    save_model(
        tmp_path / "asr",
        model,
        head=CTCHead(16, len(symbols)),
        extra={"vocabulary": list(symbols)},
    )
    save_model(
        tmp_path / "speakers",
        model,
        head=ClassificationHead(16, 2),
        extra={"classes": ["buzzing", "pure"], "label": "speaker"},
    )
    export_huggingface(tmp_path / "theirs", load_model(tmp_path / "speakers"))
    save_model(tmp_path / "pretrained", model, head=CodebookHead(16, 8, 5))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "evaluation.json").read_text())
    return {name: found[name] for name in ("scores", "counts", "tables", "utterances")}


def test_a_manifest_is_scored_as_the_prepared_corpus(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--split", "test", "valid", "--resamples", "50", "--output"]
    assert evaluate_command.main(["asr", "prepared", *words, "a"]) == 0
    assert capsys.readouterr().out == "a/test/report.md\na/valid/report.md\n"
    columns = ["--columns", "text=sentence", "--workers", "1"]
    assert evaluate_command.main(["asr", "table.csv", *words, "b", *columns]) == 0
    for split in ("test", "valid"):
        assert scores(place / "a" / split) == scores(place / "b" / split)
    names = {path.name for path in (place / "a" / "test").iterdir()}
    assert {"hypotheses.tsv", "hypotheses.trn", "references.trn", "utterances.jsonl"} <= names


def test_the_report_is_printed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_command.main(["speakers", "prepared", "--resamples", "20"]) == 0
    printed = capsys.readouterr().out
    assert "- split: test" in printed
    assert "| accuracy | " in printed
    assert "## Confusion matrix" in printed


def test_a_search_and_arguments_of_the_task(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of transformers does not say which column its classes are."""
    words = ["prepared", "--resamples", "20"]
    assert evaluate_command.main(["theirs", *words, "--task", "label=speaker"]) == 0
    assert "| accuracy | " in capsys.readouterr().out
    assert evaluate_command.main(["asr", *words, "--decoding", "kind=beam", "beam_size=4"]) == 0
    assert "| wer | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrained", "prepared"], "'pretrain' checkpoint without the head of a task"),
        (["asr", "nowhere"], "nowhere: no such file or folder; name a prepared corpus"),
        (["asr", "prepared", "--split", "tets"], "did you mean 'test'"),
        (["asr", "prepared", "--decoding", "kinds=beam"], "did you mean 'kind'"),
        (["asr", "prepared", "--decoding", "kind=beam", "lm=train"], "no training transcripts"),
        (["asr", "table.csv", "--workers", "1"], "has a transcript; CTC needs them"),
        (
            ["speakers", "prepared", "--task", "label=label"],
            "utterances of split 'test' have no label",
        ),
    ],
)
def test_what_cannot_be_scored_is_said(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_command.main(words) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_recording_is_classified_as_the_evaluation_says(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_command.main(["speakers", "prepared", "--output", "out"]) == 0
    rows = [
        json.loads(line) for line in (place / "out/test/utterances.jsonl").read_text().splitlines()
    ]
    expected = {row["id"]: row["prediction"] for row in rows}
    capsys.readouterr()
    for model in ("speakers", "theirs"):
        assert classify_command.main([model, "prepared", "--format", "jsonl", "--top", "1"]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        labels = {line["file"]: line["label"] for line in found}
        assert {id: labels[id] for id in expected} == expected
        for line in found:
            ((name, probability),) = line["values"].items()
            assert name == line["label"]
            assert 0.5 <= probability <= 1


def test_files_are_classified_in_lines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert classify_command.main(["speakers", "prepared/0.wav", "none.wav"]) == 1
    output = capsys.readouterr()
    path, label, probability = output.out.strip().split("\t")
    assert (path, label in ("buzzing", "pure")) == ("prepared/0.wav", True)
    assert 0.5 <= float(probability) <= 1
    assert "none.wav: no such file" in output.err
    assert classify_command.main(["asr", "prepared/0.wav"]) == 1
    assert "holds a 'ctc' checkpoint, which gives utterances no classes" in capsys.readouterr().err


def test_the_worked_example_of_the_page_runs(
    place: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/evaluation.md, with the folders that the tutorial leaves."""
    page = (repository / "docs" / "evaluation.md").read_text()
    commands = [
        shlex.split(line) for line in re.findall(r"^hubert-pretrain (.*)$", page, re.MULTILINE)
    ]
    assert len(commands) == 6
    run = place / "runs" / "demo"
    (run / "finetune").mkdir(parents=True)
    (place / "asr").rename(run / "finetune" / "asr")
    (place / "speakers").rename(run / "finetune" / "speakers")
    (run / "prepare").symlink_to(place / "prepared")
    (place / "list.csv").symlink_to(place / "table.csv")
    (place / "talk.wav").symlink_to(place / "prepared" / "0.wav")
    (place / "recordings").mkdir()
    (place / "recordings" / "a.wav").symlink_to(place / "prepared" / "1.wav")
    for verb, *words in commands:
        command = importlib.import_module(f"hubert_pretrain.tools.{verb}")
        assert command.main(words) == 0, capsys.readouterr().err
    assert (place / "scores" / "valid" / "evaluation.json").is_file()
    assert json.loads((place / "texts" / "a.jsonl").read_text())["file"] == "recordings/a.wav"
