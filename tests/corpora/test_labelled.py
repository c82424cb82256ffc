"""Corpora with a class label each and no options to speak of: Fluent Speech Commands, VoxCeleb1,
IEMOCAP, FSDD.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.fluent_speech_commands import FluentSpeechCommands
from hubert_pretrain.corpora.fsdd import Fsdd
from hubert_pretrain.corpora.iemocap import Iemocap
from hubert_pretrain.corpora.voxceleb1 import VoxCeleb1
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError


def listed(source: Any) -> list[SourceUtterance]:
    return list(source.utterances(Path()))


# -- Fluent Speech Commands
# ---------------------------------------------------------------------------------------------------------

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


def test_intents(tree: Any) -> None:
    root = tree(commands())
    for place in (root, root / "fluent_speech_commands_dataset"):
        found = listed(FluentSpeechCommands(root=str(place)))
        assert [claim.split for claim in found] == ["train", "valid", "test"]
        assert found[0].label == "activate|lights|none"
        assert (found[0].text, found[0].speaker, found[0].id) == (
            "Turn the lights on, please",
            "2BqVo8kVB2Skwgyb",
            "0a3129c0",
        )


def test_a_table_without_its_audio_or_column(tree: Any) -> None:
    root = tree(commands())
    home = root / "fluent_speech_commands_dataset"
    (home / "wavs/speakers/2BqVo8kVB2Skwgyb/0a3129c1.wav").unlink()
    with pytest.raises(
        DataError, match=r"0a3129c1\.wav: no such file, but .*valid_data\.csv: line 2 names it"
    ):
        listed(FluentSpeechCommands(root=str(root)))
    (home / "data/train_data.csv").write_text(HEADER.replace("speakerId", "speaker"))
    with pytest.raises(
        DataError, match=r"train_data\.csv: no column 'speakerId' \(did you mean 'speaker'\?\)"
    ):
        listed(FluentSpeechCommands(root=str(root)))
    (home / "data/train_data.csv").unlink()
    with pytest.raises(DataError, match=r"train_data\.csv: not there .*expected <root>/data"):
        listed(FluentSpeechCommands(root=str(root)))


# -- VoxCeleb1
# ----------------------------------------------------------------------------------------------------------------------

VIDEO = "id10003/na8-QEFmj44"


def test_identification_splits(tree: Any) -> None:
    table = "".join(f"{n} {VIDEO}/0000{n}.wav\n" for n in (3, 1, 2))
    root = tree({f"wav/{VIDEO}/0000{n}.wav": "" for n in (1, 2, 3)} | {"iden_split.txt": table})
    found = listed(VoxCeleb1(root=str(root)))
    assert [(claim.id, claim.split) for claim in found] == [
        (f"{VIDEO}/00003", "test"),
        (f"{VIDEO}/00001", "train"),
        (f"{VIDEO}/00002", "valid"),
    ]
    assert {(claim.label, claim.speaker) for claim in found} == {("id10003", "id10003")}


def test_a_list_that_does_not_fit(tree: Any) -> None:
    root = tree({"wav/id10001/x/00001.wav": "", "iden_split.txt": f"1 {VIDEO}/00001.wav\n"})
    with pytest.raises(
        DataError,
        match=r"na8-QEFmj44/00001\.wav: no such file, but .*iden_split\.txt, line 1, names it",
    ):
        listed(VoxCeleb1(root=str(root)))
    (root / "iden_split.txt").write_text("4 id10001/x/00001.wav\n")
    with pytest.raises(
        DataError,
        match=r"iden_split\.txt: line 1 is '4 id10001/x/00001\.wav', expected '1, 2 or 3 <speaker>",
    ):
        listed(VoxCeleb1(root=str(root)))
    (root / "iden_split.txt").rename(root / "iden_split (1).txt")
    with pytest.raises(
        DataError, match=r"iden_split\.txt: not there \(did you mean 'iden_split \(1\)\.txt'\?\)"
    ):
        listed(VoxCeleb1(root=str(root)))
    with pytest.raises(DataError, match=r"nowhere: no such folder; .*Visual Geometry Group"):
        listed(VoxCeleb1(root=str(root / "nowhere")))


# -- IEMOCAP
# ------------------------------------------------------------------------------------------------------------------------

JUDGED = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
TURNS = [("F000", "neu"), ("F001", "fru"), ("M000", "exc"), ("M001", "xxx"), ("M002", "hap")]


def sessions() -> dict[str, str | bytes]:
    """Five sessions of one improvised dialogue, and a scripted one in the first."""
    files: dict[str, str | bytes] = {}
    for dialogue in [
        "Ses01F_impro01",
        "Ses01M_script01_1",
        *[f"Ses0{number}F_impro01" for number in range(2, 6)],
    ]:
        home = f"IEMOCAP_full_release/Session{dialogue[4]}"
        judged = JUDGED
        for turn, emotion in TURNS:
            judged += f"[6.2901 - 8.2357]\t{dialogue}_{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n\n"
            files[f"{home}/sentences/wav/{dialogue}/{dialogue}_{turn}.wav"] = ""
        files[f"{home}/dialog/EmoEvaluation/{dialogue}.txt"] = judged
        files[f"{home}/dialog/EmoEvaluation/Categorical/{dialogue}_e2_cat.txt"] = "not for us"
        said = f"{dialogue}_F000 [006.2901-008.2357]: Excuse me, caf\xe9.\n".encode("latin-1")
        files[f"{home}/dialog/transcriptions/{dialogue}.txt"] = said
        files[f"{home}/dialog/EmoEvaluation/._{dialogue}.txt"] = b"\x00\x05\x16\x07"
    return files


def test_four_emotions_in_five_folds(tree: Any) -> None:
    root = tree(sessions())
    for fold in range(1, 6):
        found = listed(Iemocap(root=str(root), test_session=fold))
        assert Counter(claim.label for claim in found) == {"neu": 6, "hap": 12}
        assert {claim.speaker[:5] for claim in found if claim.split == "test"} == {f"Ses0{fold}"}
        assert not {claim.speaker for claim in found if claim.split == "test"} & {
            c.speaker for c in found if c.split == "train"
        }
    with pytest.raises(ConfigError, match=r"test_session=6: expected 1 to 5"):
        Iemocap(root=str(root), test_session=6)


def test_who_speaks_is_in_the_turn_not_in_the_dialogue(tree: Any) -> None:
    found = {claim.id: claim for claim in listed(Iemocap(root=str(tree(sessions()))))}
    assert found["Ses01F_impro01_F000"].speaker == "Ses01F"
    assert found["Ses01F_impro01_M000"].speaker == "Ses01M"
    assert found["Ses01F_impro01_F000"].text == "Excuse me, caf\xe9."
    assert found["Ses01F_impro01_M000"].text == ""


def test_every_judgement_and_only_improvised(tree: Any) -> None:
    root = tree(sessions())
    assert {claim.label for claim in listed(Iemocap(root=str(root), classes=0))} == {
        "neu",
        "fru",
        "exc",
        "xxx",
        "hap",
    }
    assert not [
        claim
        for claim in listed(Iemocap(root=str(root), kinds=["improvised"]))
        if "script" in claim.id
    ]
    with pytest.raises(
        ConfigError,
        match=r"kinds='impro': expected improvised or scripted \(did you mean 'improvised'\?\)",
    ):
        Iemocap(root=str(root), kinds=["impro"])


def test_a_broken_release_is_named(tree: Any) -> None:
    root = tree(sessions())
    home = root / "IEMOCAP_full_release"
    (home / "Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_M002.wav").unlink()
    with pytest.raises(
        DataError,
        match=r"Ses02F_impro01_M002\.wav: no such file, but .*Ses02F_impro01\.txt names it",
    ):
        listed(Iemocap(root=str(root)))
    (home / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt").write_text("nothing\n")
    with pytest.raises(DataError, match=r"Ses01F_impro01\.txt: no line '\[<start> - <end>\]"):
        listed(Iemocap(root=str(root)))
    (home / "Session1").rename(home / "session1")
    with pytest.raises(
        DataError, match=r"Session1: not there \(did you mean .*expected <root>/Session\{1\.\.5\}"
    ):
        listed(Iemocap(root=str(root)))


# -- FSDD
# ---------------------------------------------------------------------------------------------------------------------------


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
        assert {claim.id: claim.split for claim in found} == {
            "7_jackson_0": "test",
            "7_jackson_4": "test",
            "7_jackson_5": "train",
            "7_jackson_49": "train",
        }
        assert {(claim.label, claim.text, claim.speaker) for claim in found} == {
            ("7", "SEVEN", "jackson")
        }


def test_a_name_that_says_no_digit(tree: Any) -> None:
    root = tree({"recordings/seven_jackson_0.wav": ""})
    with pytest.raises(DataError, match=r"seven_jackson_0\.wav: its name says no digit"):
        listed(Fsdd(root=str(root)))
    (root / "recordings/seven_jackson_0.wav").unlink()
    with pytest.raises(DataError, match=r"recordings: no recordings in it"):
        listed(Fsdd(root=str(root)))


def test_real_digits(shared: Path) -> None:
    found = listed(Fsdd(root=str(shared / "data/fsdd")))
    assert len(found) == 720
    assert Counter(claim.split for claim in found) == {"train": 540, "test": 180}
    assert len({claim.speaker for claim in found}) == 6
    assert set(Counter(claim.label for claim in found).values()) == {72}
