from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.iemocap import Iemocap
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError


def listed(source: Any) -> list[SourceUtterance]:
    return list(source.utterances(Path()))


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
            judged += f"[6.2901 - 8.2357]\t{dialogue}_{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n"
            judged += "C-E2:\tNeutral;\t()\n\n"
            files[f"{home}/sentences/wav/{dialogue}/{dialogue}_{turn}.wav"] = ""
        files[f"{home}/dialog/EmoEvaluation/{dialogue}.txt"] = judged
        files[f"{home}/dialog/EmoEvaluation/Categorical/{dialogue}_e2_cat.txt"] = "not for us"
        transcript = f"{dialogue}_F000 [006.2901-008.2357]: Excuse me, caf\xe9.\n".encode("latin-1")
        files[f"{home}/dialog/transcriptions/{dialogue}.txt"] = transcript
        files[f"{home}/dialog/EmoEvaluation/._{dialogue}.txt"] = b"\x00\x05\x16\x07"
    return files


def test_four_emotions_in_five_folds(tree: Any) -> None:
    root = tree(sessions())
    for fold in range(1, 6):
        found = listed(Iemocap(root=str(root), test_session=fold))
        assert Counter(utterance.label for utterance in found) == {"neu": 6, "hap": 12}
        assert {utterance.speaker[:5] for utterance in found if utterance.split == "test"} == {
            f"Ses0{fold}"
        }
        assert not {utterance.speaker for utterance in found if utterance.split == "test"} & {
            c.speaker for c in found if c.split == "train"
        }
    with pytest.raises(ConfigError, match=r"test_session=6: expected 1 to 5"):
        Iemocap(root=str(root), test_session=6)


def test_the_speaker_is_that_of_the_turn(tree: Any) -> None:
    found = {utterance.id: utterance for utterance in listed(Iemocap(root=str(tree(sessions()))))}
    assert found["Ses01F_impro01_F000"].speaker == "Ses01F"
    assert found["Ses01F_impro01_M000"].speaker == "Ses01M"
    assert found["Ses01F_impro01_F000"].text == "Excuse me, caf\xe9."
    assert found["Ses01F_impro01_M000"].text == ""


def test_every_emotion_and_only_improvised_dialogues(tree: Any) -> None:
    root = tree(sessions())
    assert {utterance.label for utterance in listed(Iemocap(root=str(root), classes=0))} == {
        "neu",
        "fru",
        "exc",
        "xxx",
        "hap",
    }
    assert not [
        utterance
        for utterance in listed(Iemocap(root=str(root), kinds=["improvised"]))
        if "script" in utterance.id
    ]
    with pytest.raises(
        ConfigError,
        match=r"kinds='impro': expected improvised or scripted \(did you mean 'improvised'\?\)",
    ):
        Iemocap(root=str(root), kinds=["impro"])


def test_errors_name_missing_parts_of_the_release(tree: Any) -> None:
    root = tree(sessions())
    home = root / "IEMOCAP_full_release"
    before = listed(Iemocap(root=str(root)))
    (home / "Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_M002.wav").unlink()
    assert listed(Iemocap(root=str(root))) == before
    (home / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt").write_text("nothing\n")
    with pytest.raises(DataError, match=r"Ses01F_impro01\.txt: no line '\[<start> - <end>\]"):
        listed(Iemocap(root=str(root)))
    (home / "Session1").rename(home / "session1")
    with pytest.raises(
        DataError, match=r"Session1: not there \(did you mean .*expected <root>/Session\{1\.\.5\}"
    ):
        listed(Iemocap(root=str(root)))
