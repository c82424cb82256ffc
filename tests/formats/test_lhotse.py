"""Cut sets of lhotse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError

from .conftest import read_manifest, write

CUT: dict[str, Any] = {
    "id": "c",
    "start": 0.25,
    "duration": 0.5,
    "channel": 0,
    "supervisions": [
        {
            "id": "2",
            "recording_id": "r",
            "start": 0.3,
            "duration": 0.2,
            "channel": 0,
            "text": "YOU",
            "speaker": "x",
        },
        {
            "id": "1",
            "recording_id": "r",
            "start": 0.0,
            "duration": 0.3,
            "channel": 0,
            "text": "HI",
            "speaker": "x",
            "alignment": {"phone": [["h", 0.25, 0.125, None], ["i", 0.375, 0.125, None]]},
        },
    ],
    "recording": {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
        "sampling_rate": 16000,
        "num_samples": 16000,
        "duration": 1.0,
        "channel_ids": [0],
    },
    "type": "MonoCut",
}


def cut(place: Path, change: Callable[[dict[str, Any]], Any]) -> SourceUtterance:
    row = json.loads(json.dumps(CUT))
    change(row)
    (utterance,) = read_manifest(write(place / "cuts_dev-clean.jsonl", json.dumps(row) + "\n"))
    return utterance


def test_a_cut(place: Path) -> None:
    utterance = cut(place, lambda row: None)
    assert utterance == SourceUtterance(
        id="c",
        path=str(place / "a.wav"),
        split="valid",
        start=4000,
        num_samples=8000,
        text="HI YOU",
        speaker="x",
        phones=[("h", 0, 2000), ("i", 2000, 4000)],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(type="MixedCut"), "line 1: is a MixedCut, expected a MonoCut"),
        (lambda row: row.update(type="PaddingCut"), "is a PaddingCut"),
        (lambda row: row.update(channel=1), "is about channel 1, only channel 0"),
        (lambda row: row.update(channel=[0, 1]), r"is about channel \[0, 1\]"),
        (
            lambda row: row["recording"]["sources"][0].update(type="command", source="rm -rf /"),
            "is the command 'rm -rf /', .*code to execute",
        ),
        (
            lambda row: row["recording"]["sources"][0].update(type="memory"),
            "is of type 'memory', expected file or url",
        ),
        (lambda row: row["recording"]["sources"][0].update(channels=[0, 1]), "several channels"),
        (
            lambda row: row["recording"].update(transforms=[{"name": "Speed"}]),
            "changed while it is read",
        ),
        (lambda row: row.pop("recording"), "is a cut without its recording"),
        (lambda row: row.update(start=2.0), r"begins at 2\.0 s of a recording of 1 s"),
        (lambda row: row.update(duration=-1), "duration is -1, expected a number"),
        (lambda row: row.pop("id"), r"is no MonoCut of lhotse \(KeyError: 'id'\)"),
        (lambda row: row.update(supervisions=3), "is no MonoCut of lhotse"),
    ],
)
def test_other_cuts_are_refused(
    place: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        cut(place, change)
