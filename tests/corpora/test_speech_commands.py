from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hubert_pretrain.corpora.speech_commands import SpeechCommands
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

HOME = "speech_commands_v0.02"
OFFICIAL = "speech_commands_test_set_v0.02"


@pytest.fixture
def root(tree: Any) -> Path:
    """Two of the ten words and one other, three speakers each; a noise of 20.5 s; the test set of
    12 classes.
    """
    names = [
        f"{word}/{speaker}_nohash_0.wav"
        for word in ("yes", "no", "bed")
        for speaker in ("0a2b400e", "1b4c9b89", "004ae714")
    ]
    words = (
        "yes",
        "no",
        "up",
        "down",
        "left",
        "right",
        "on",
        "off",
        "stop",
        "go",
        "_unknown_",
        "_silence_",
    )
    root = Path(
        tree(
            {f"{HOME}/{name}": "" for name in names}
            | {f"{OFFICIAL}/{word}/0a2b400e_nohash_0.wav": "" for word in words}
            | {
                f"{HOME}/validation_list.txt": "".join(
                    f"{name}\n" for name in names if "1b4c9b89" in name
                )
            }
            | {
                f"{HOME}/testing_list.txt": "".join(
                    f"{name}\n" for name in names if "004ae714" in name
                )
            }
            | {f"{HOME}/LICENSE": "", f"{HOME}/_background_noise_/README.md": ""}
        )
    )
    soundfile.write(root / HOME / "_background_noise_/pink_noise.wav", np.zeros(328000), 16000)
    return root


def utterances(root: Path, **values: Any) -> list[SourceUtterance]:
    return list(SpeechCommands(root=str(root), **values).utterances(root))


def test_thirty_five_words_in_their_published_splits(root: Path) -> None:
    for place in (root, root / HOME):
        found = utterances(place)
        assert len(found) == 9  # the noises are not words
        assert {(utterance.speaker, utterance.split) for utterance in found} == {
            ("0a2b400e", "train"),
            ("1b4c9b89", "valid"),
            ("004ae714", "test"),
        }
        assert {(utterance.label, utterance.text) for utterance in found} == {
            ("yes", "yes"),
            ("no", "no"),
            ("bed", "bed"),
        }


def test_twelve_classes(root: Path) -> None:
    found = utterances(root, classes=12)
    assert {utterance.label for utterance in found} == {"yes", "no", "_unknown_", "_silence_"}
    silence = [utterance for utterance in found if utterance.label == "_silence_"]
    assert Counter(utterance.split for utterance in silence) == {"train": 16, "valid": 2, "test": 2}
    assert [(utterance.start, utterance.num_samples) for utterance in silence] == [
        (second * 16000, 16000) for second in range(20)
    ]
    assert len({utterance.id for utterance in found}) == len(found)


def test_the_official_test_set_replaces_the_list(root: Path) -> None:
    found = utterances(root, classes=12, official_test=True)
    test = [utterance for utterance in found if utterance.split == "test"]
    assert all(f"/{OFFICIAL}/" in str(utterance.path) for utterance in test)
    assert len({utterance.label for utterance in test}) == len(test) == 12
    assert "004ae714" not in {utterance.speaker for utterance in found}
    assert len({utterance.id for utterance in found}) == len(found)
    with pytest.raises(
        ConfigError,
        match=r"official_test=true: that test set has 12 classes; add data\.corpus\.classes=12",
    ):
        utterances(root, official_test=True)
    (root / OFFICIAL / "_silence_").rename(root / OFFICIAL / "silence")
    with pytest.raises(DataError, match=r"_silence_: not there \(did you mean 'silence'\?\)"):
        utterances(root, classes=12, official_test=True)


def test_errors_name_missing_files(root: Path) -> None:
    (root / HOME / "testing_list.txt").unlink()
    with pytest.raises(
        DataError,
        match=r"testing_list\.txt: not there.*"
        r"expected <root>/\{validation_list\.txt,testing_list\.txt\}",
    ):
        utterances(root)
    with pytest.raises(DataError, match=r"nowhere: no such folder; .*data\.download=true"):
        utterances(root / "nowhere")
    with pytest.raises(ConfigError, match=r"classes=10: expected 35 or 12"):
        utterances(root, classes=10)


def test_version_one_has_folders_of_its_own(root: Path) -> None:
    """And the same lists; its archives have their own checksum."""
    expected = utterances(root, classes=12, official_test=True)
    for name in (HOME, OFFICIAL):
        (root / name).rename(root / name.replace("v0.02", "v0.01"))
    found = utterances(root, classes=12, official_test=True, version="v0.01")
    assert [each.id for each in found] == [each.id for each in expected]
    with pytest.raises(DataError, match=r"validation_list\.txt: not there"):
        utterances(root, classes=12)
    with pytest.raises(ConfigError, match=r"version='v0\.3': expected v0\.02 or v0\.01"):
        SpeechCommands(root=str(root), version="v0.3")
