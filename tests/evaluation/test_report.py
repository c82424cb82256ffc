"""The files of an evaluation: what programs and people read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.classes import analyse_classes
from hubert_pretrain.evaluation.report import trn, write_evaluation
from hubert_pretrain.evaluation.texts import analyse_texts
from hubert_pretrain.evaluation.utterances import ScoredUtterances

SCORED = ScoredUtterances(
    ["a 1", "b", "c"],
    ["ONE TWO", "", "ONE"],
    ["ONE", "", "WAN | \t"],
    ["m", "f", "f"],
    np.array([16000, 32000, 8000]),
)


def test_all_forms_state_the_same_numbers(tmp_path: Path) -> None:
    analysis = analyse_texts(SCORED, Sampling(resamples=20))
    write_evaluation(tmp_path, SCORED, analysis, {"model": "m", "split": "test"})
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert (found["model"], found["split"], found["utterances"]) == ("m", "test", 3)
    wer = found["scores"]["wer"]
    assert wer["value"] == 1.0
    assert set(wer["interval"]) == {"utterance", "speaker"}
    assert found["tables"]["worst utterances"][0] == {
        "id": "c",
        "errors": 2,
        "words": 1,
        "reference": "ONE",
        "hypothesis": "WAN | \t",
    }
    rows = [json.loads(line) for line in (tmp_path / "utterances.jsonl").read_text().splitlines()]
    assert [row["hypothesis"] for row in rows] == list(SCORED.predictions)
    report = (tmp_path / "report.md").read_text()
    assert "| wer | 1.000 |" in report
    assert "| words | 1 | 1 | 1 | 3 |" in report
    assert "WAN \\|" in report


def test_transcripts_in_the_form_of_sclite(tmp_path: Path) -> None:
    assert trn(["a (1)", "b"], ["ONE  TWO", ""]) == "ONE TWO (a__1_)\n(b)\n"
    write_evaluation(tmp_path, SCORED, analyse_texts(SCORED, Sampling(resamples=2)), {})
    assert (tmp_path / "references.trn").read_text() == "ONE TWO (a_1)\n(b)\nONE (c)\n"
    assert (tmp_path / "hypotheses.trn").read_text() == "ONE (a_1)\n(b)\nWAN | (c)\n"


def test_a_long_table_says_what_it_leaves_out(tmp_path: Path) -> None:
    names = [f"s{number:02}" for number in range(30)]
    scored = ScoredUtterances(names, names, names[::-1], names, np.full(30, 16000))
    write_evaluation(tmp_path, scored, analyse_classes(scored, Sampling(resamples=2)), {})
    report = (tmp_path / "report.md").read_text()
    assert "The first 20 of 30; evaluation.json has them all." in report
    assert not (tmp_path / "hypotheses.trn").exists()
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(found["tables"]["confusions"]) == 30
