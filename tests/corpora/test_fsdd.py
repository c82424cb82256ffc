from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.fsdd import Fsdd
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError


def listed(source: Any) -> list[SourceUtterance]:
    return list(source.utterances(Path()))


def test_digits(tree: Any) -> None:
    root = tree(
        {
            f"free-spoken-digit-dataset-1.0.10/recordings/7_jackson_{number}.wav": ""
            for number in (0, 4, 5, 49)
        }
    )
    for place in (
        root,
        root / "free-spoken-digit-dataset-1.0.10",
        root / "free-spoken-digit-dataset-1.0.10/recordings",
    ):
        found = listed(Fsdd(root=str(place)))
        assert {utterance.id: utterance.split for utterance in found} == {
            "7_jackson_0": "test",
            "7_jackson_4": "test",
            "7_jackson_5": "train",
            "7_jackson_49": "train",
        }
        assert {(utterance.label, utterance.text, utterance.speaker) for utterance in found} == {
            ("7", "SEVEN", "jackson")
        }


def test_a_file_name_of_another_form_is_refused(tree: Any) -> None:
    root = tree({"recordings/seven_jackson_0.wav": ""})
    with pytest.raises(
        DataError, match=r"seven_jackson_0\.wav: its name has no digit, speaker and number"
    ):
        listed(Fsdd(root=str(root)))
    (root / "recordings/seven_jackson_0.wav").unlink()
    with pytest.raises(DataError, match=r"recordings: no recordings in it"):
        listed(Fsdd(root=str(root)))


def test_real_digits(shared: Path) -> None:
    found = listed(Fsdd(root=str(shared / "data/fsdd")))
    assert len(found) == 720
    assert Counter(utterance.split for utterance in found) == {"train": 540, "test": 180}
    assert len({utterance.speaker for utterance in found}) == 6
    assert set(Counter(utterance.label for utterance in found).values()) == {72}
