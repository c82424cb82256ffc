from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.fluent_speech_commands import FluentSpeechCommands
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError


def listed(source: Any) -> list[SourceUtterance]:
    return list(source.utterances(Path()))


HEADER = ",path,speakerId,transcription,action,object,location\n"


def commands() -> dict[str, str]:
    files = {}
    for number, split in enumerate(("train", "valid", "test")):
        wav = f"wavs/speakers/2BqVo8kVB2Skwgyb/0a3129c{number}.wav"
        table = (
            f'{HEADER}0,{wav},2BqVo8kVB2Skwgyb,"Turn the lights on, please",activate,lights,none\n'
        )
        files |= {
            f"fluent_speech_commands_dataset/{wav}": "",
            f"fluent_speech_commands_dataset/data/{split}_data.csv": table,
        }
    return files


def test_labels_are_intents(tree: Any) -> None:
    root = tree(commands())
    for place in (root, root / "fluent_speech_commands_dataset"):
        found = listed(FluentSpeechCommands(root=str(place)))
        assert [utterance.split for utterance in found] == ["train", "valid", "test"]
        assert found[0].label == "activate|lights|none"
        assert (found[0].text, found[0].speaker, found[0].id) == (
            "Turn the lights on, please",
            "2BqVo8kVB2Skwgyb",
            "0a3129c0",
        )


def test_a_table_without_audio_or_a_column_is_refused(tree: Any) -> None:
    root = tree(commands())
    home = root / "fluent_speech_commands_dataset"
    before = listed(FluentSpeechCommands(root=str(root)))
    (home / "wavs/speakers/2BqVo8kVB2Skwgyb/0a3129c1.wav").unlink()
    assert listed(FluentSpeechCommands(root=str(root))) == before
    (home / "data/train_data.csv").write_text(HEADER.replace("speakerId", "speaker"))
    with pytest.raises(
        DataError, match=r"train_data\.csv: no column 'speakerId' \(did you mean 'speaker'\?\)"
    ):
        listed(FluentSpeechCommands(root=str(root)))
    (home / "data/train_data.csv").unlink()
    with pytest.raises(DataError, match=r"train_data\.csv: not there .*expected <root>/data"):
        listed(FluentSpeechCommands(root=str(root)))
