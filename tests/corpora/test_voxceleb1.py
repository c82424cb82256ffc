from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.voxceleb1 import VoxCeleb1
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError


def listed(source: Any) -> list[SourceUtterance]:
    return list(source.utterances(Path()))


VIDEO = "id10003/na8-QEFmj44"


def test_identification_splits(tree: Any) -> None:
    table = "".join(f"{n} {VIDEO}/0000{n}.wav\n" for n in (3, 1, 2))
    root = tree({f"wav/{VIDEO}/0000{n}.wav": "" for n in (1, 2, 3)} | {"iden_split.txt": table})
    found = listed(VoxCeleb1(root=str(root)))
    assert [(utterance.id, utterance.split) for utterance in found] == [
        (f"{VIDEO}/00003", "test"),
        (f"{VIDEO}/00001", "train"),
        (f"{VIDEO}/00002", "valid"),
    ]
    assert {(utterance.label, utterance.speaker) for utterance in found} == {("id10003", "id10003")}


def test_verification_splits(tree: Any) -> None:
    """The utterances of the trials, and all of the speakers that are in none of them."""
    names = [f"wav/id{n}/x/0000{k}.wav" for n in (10001, 10002, 10270) for k in (1, 2)]
    trials = (
        "1 id10270/x/00001.wav id10270/x/00001.wav\n0 id10270/x/00001.wav id10002/x/00002.wav\n"
    )
    root = tree(dict.fromkeys(names, "") | {"veri_test.txt": trials})
    found = listed(VoxCeleb1(root=str(root), splits="verification"))
    assert [(one.id, one.split, one.speaker) for one in found] == [
        ("id10002/x/00002", "test", "id10002"),
        ("id10270/x/00001", "test", "id10270"),
        ("id10001/x/00001", "train", "id10001"),
        ("id10001/x/00002", "train", "id10001"),
    ]
    (root / "veri_test.txt").unlink()
    with pytest.raises(DataError, match=r"veri_test\.txt: not there"):
        listed(VoxCeleb1(root=str(root), splits="verification"))
    with pytest.raises(ConfigError, match="did you mean 'verification'"):
        VoxCeleb1(root=str(root), splits="verificaton")  # type: ignore[arg-type]


def test_a_list_that_does_not_match_the_audio_is_refused(tree: Any) -> None:
    root = tree({"wav/id10001/x/00001.wav": "", "iden_split.txt": f"1 {VIDEO}/00001.wav\n"})
    assert [one.id for one in listed(VoxCeleb1(root=str(root)))] == [f"{VIDEO}/00001"]
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
