"""Content of report.html, without a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.files import read_json
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.report import clips, contents, page
from hubert_pretrain.report.runs import Run
from hubert_pretrain.targets.segments import (
    BoundaryScores,
    collapsed,
    phone_error_rate,
)
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.tools import score_units

MakeRun = Callable[..., tuple[Recipe, Workspace]]


def content_of(made: tuple[Recipe, Workspace]) -> dict[str, Any]:
    """The content of the page of one run."""
    return contents.collect([Run.of(*made)])


def test_every_section_has_its_data(make_run: MakeRun) -> None:
    content = content_of(make_run())
    assert content["missing"] == []
    assert set(content["units"]) == {"it1", "it2"}
    units = content["units"]["it1"]
    assert units["phones"] == ["a", "b"]
    # Units 0 to 2 are spoken in the first half, where the phone is a.
    assert [row[0] > 90 for row in units["shares"]] == [True] * 3 + [False] * 3
    assert len(units["neighbours"][0]) == 5
    run = content["runs"][0]
    assert run["iterations"]["it1"]["curves"]["loss"] == [
        [10, 20, 30, 40, 50],
        pytest.approx([3, 1.5, 1, 0.75, 0.6]),
    ]
    evaluation = run["tasks"]["asr"]["splits"]["test"]
    assert evaluation["facts"]["intervals"] == {"wer": [0.1, 0.4]}
    assert run["tasks"]["asr"]["curves"]["valid/any_score"] == [[30], [0.7]]
    assert [each["id"] for each in evaluation["worst"]] == ["u13"]
    assert content["clips"][0]["id"] == "u13"  # the worst come first
    assert {clip["split"] for clip in content["clips"][:8]} == {"test"}


def test_alarms_have_a_name_a_time_and_advice(make_run: MakeRun) -> None:
    recipe, workspace = make_run()
    path = workspace.folder("it1/pretrain") / "logs" / "metrics.csv"
    rows = ["step,health/alarms,valid/loss,health/alarm/slow_loader,health/alarm/collapse"]
    rows += ["10,0,,,", "20,1,,3,", "30,1,,4,", "30.5,,2.0,,", "40,2,,,3", "50,2,,3,4"]
    path.write_text("\n".join(rows) + "\n")
    iterations = content_of((recipe, workspace))["runs"][0]["iterations"]
    assert iterations["it2"]["alarms"] == []
    slow, collapse = iterations["it1"]["alarms"]
    assert "loader_workers" in slow.pop("advice")
    assert slow == {"name": "slow_loader", "first": 20, "last": 50, "logs": 3, "of": 5}
    assert (collapse["name"], collapse["first"], collapse["logs"]) == ("collapse", 40, 2)


def test_the_worst_of_numbers_have_the_largest_errors(make_run: MakeRun) -> None:
    recipe, workspace = make_run()
    rows = [
        {"id": f"u{13 + place}", "error": error, "reference": "1;2", "prediction": "1;3"}
        for place, error in enumerate((0.25, 1.5, 0.0))
    ]
    path = workspace.folder("evaluate/asr/test") / "utterances.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    worst = content_of((recipe, workspace))["runs"][0]["tasks"]["asr"]["splits"]["test"]["worst"]
    assert [(each["id"], each["errors"]) for each in worst] == [("u14", 1.5), ("u13", 0.25)]
    assert not any(each["is_share"] for each in worst)


def test_clips_are_the_audio_of_the_corpus(make_run: MakeRun) -> None:
    recipe, workspace = make_run()
    clip = content_of((recipe, workspace))["clips"][0]
    decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(clip["audio"].split(",")[1])))
    assert rate == 16_000
    assert len(decoded) == pytest.approx(16_000, abs=1)
    spectrum = np.abs(np.fft.rfft(decoded[4000:12_000]))
    assert 2 * np.argmax(spectrum) == pytest.approx(200 + 50 * 13, abs=2)  # the tone of u13
    assert len(clip["units"]["it1"]) == 49
    assert clip["phones"] == [("a", 0.0, 0.5), ("b", 0.5, 1.0)]


def test_audio_is_encoded_once(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, workspace = make_run()
    first = content_of((recipe, workspace))["clips"]

    def never(waveform: Any) -> str:
        raise AssertionError("encoded again")

    monkeypatch.setattr(clips, "opus", never)
    assert content_of((recipe, workspace))["clips"] == first
    (cache := read_json(workspace.report_cache_path) or {})["of"] = "another corpus"
    workspace.report_cache_path.write_text(json.dumps(cache))
    with pytest.raises(AssertionError, match="encoded again"):
        content_of((recipe, workspace))


def test_names_of_the_run_are_no_markup(make_run: MakeRun) -> None:
    recipe, workspace = make_run()
    text = page.run(recipe, workspace).read_text()
    assert "<script>window.evil" not in text
    assert "\\u003cscript\\u003ewindow.evil" in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data is not None
    assert json.loads(data.group(1))["runs"][0]["recipe"] == "smoke"


@pytest.mark.parametrize("up_to", ["prepare", "it1/label", "it2/label"])
def test_a_run_under_way_says_what_is_missing(make_run: MakeRun, up_to: str) -> None:
    recipe, workspace = make_run(up_to=up_to)
    content = content_of((recipe, workspace))
    assert any(sentence.startswith(up_to) for sentence in content["missing"])
    assert page.run(recipe, workspace).stat().st_size > 100_000


def test_a_training_that_is_under_way_has_its_curves(make_run: MakeRun) -> None:
    recipe, workspace = make_run()
    workspace.folder("it2/pretrain").rename(workspace.partial_folder("it2/pretrain"))
    (workspace.partial_folder("it2/pretrain") / "meta.json").unlink()
    content = content_of((recipe, workspace))
    assert content["runs"][0]["iterations"]["it2"]["curves"]["loss"][0] == [10, 20, 30, 40, 50]
    states = {stage["name"]: stage["state"] for stage in content["runs"][0]["stages"]}
    assert states["it2/pretrain"] == "interrupted"


def test_a_corpus_without_alignments(make_run: MakeRun) -> None:
    content = content_of(make_run(aligned=False))
    assert content["missing"] == []
    assert "shares" not in content["units"]["it1"]
    assert content["clips"][0]["phones"] == []


def test_damaged_targets_are_named_and_the_rest_is_shown(make_run: MakeRun) -> None:
    recipe, workspace = make_run()
    targets = workspace.folder("it2/label") / "targets.bin"
    targets.write_bytes(targets.read_bytes()[:-10])
    content = content_of((recipe, workspace))
    assert any("targets.bin" in sentence for sentence in content["missing"])
    assert set(content["units"]) == {"it1"}
    assert content["clips"]


def test_audio_that_is_gone_is_named_at_its_clip(make_run: MakeRun) -> None:
    recipe, workspace = make_run()
    (workspace.folder("prepare") / "audio" / "u13.wav").unlink()
    clip = content_of((recipe, workspace))["clips"][0]
    assert clip["audio"] == ""
    assert "u13.wav" in clip["error"]


def test_numbers_that_json_does_not_have_become_null() -> None:
    assert page.as_script({"a": float("nan"), "b": [float("inf"), 1.5]}) == (
        '{"a": null, "b": [null, 1.5]}'
    )


def test_scores_of_segments_are_those_of_the_command(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe, workspace = make_run()
    corpus = Corpus.open(workspace.folder("prepare"))
    store = TargetStore.open(workspace.folder("it1/label"))
    rows = [
        {"file": corpus.manifest[row].id, "units": store.target_matrix(row)[:, 0].tolist()}
        for row in range(len(corpus.manifest))
    ]
    (tmp_path / "units.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [str(tmp_path / "units.jsonl"), "--corpus", str(corpus.folder), "--n-units", "6"]
    assert score_units.main(command) == 0
    expected = json.loads(capsys.readouterr().out)["many_to_one"]
    found = content_of((recipe, workspace))["units"]["it1"]["segments"]
    assert found == pytest.approx(expected)
    assert found["f1"] > 0.9  # a unit of the first half stands for a, one of the second for b


def test_the_r_value_is_that_of_its_paper() -> None:
    # Räsänen et al. 2009: with a hit rate of 1 and no over-segmentation R is 1; twice as many
    # boundaries as there are, all hit: r1 = 1, r2 = -1 / sqrt(2), R = 1 - (1 + .7071) / 2.
    assert BoundaryScores(1.0, 1.0).r_value == pytest.approx(1.0)
    assert BoundaryScores(0.5, 1.0).r_value == pytest.approx(1 - (1 + 2**-0.5) / 2)


def test_the_phone_error_rate_counts_edits_of_collapsed_sequences() -> None:
    phones = [np.array([0, 0, 1, 1, 2, 2])]
    units = [np.array([4, 4, 4, 5, 5, 3])]
    phone_of_unit = np.array([0, 0, 0, 1, 0, 2])  # units 4, 5, 3 -> phones 0, 2, 1
    assert collapsed(phone_of_unit[units[0]]) == [0, 2, 1]
    assert phone_error_rate(units, phones, phone_of_unit) == pytest.approx(2 / 3)
