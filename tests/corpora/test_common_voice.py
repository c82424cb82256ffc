from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.common_voice import CommonVoice
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

NEW = (
    "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\t"
    "accents\tvariant\tlocale\tsegment\n"
)
OLD = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent\n"


def row(speaker: str, number: int, sentence: str) -> str:
    """A line of a release since 2023."""
    client = speaker * 128
    clip = f"{client}\tcommon_voice_de_{number}.mp3\tabc\t{sentence}\t\t2\t0"
    return f"{clip}\ttwenties\tfemale_feminine\tDeutschland\t\tde\t\n"


@pytest.fixture
def root(tree: Any) -> Path:
    """A release with one language: speaker a in train, b in dev, c in test, d in no split;
    validated holds all and more of c.
    """
    train = row("a", 1, 'Er sagte "ja".')
    dev = row("b", 2, "Nein.")
    test = row("c", 3, "Vielleicht\u2026")
    rest = row("d", 4, "Noch eins.") + row("c", 5, "Noch eins von c.")
    files = {
        f"cv-corpus-17.0-2024-03-15/de/clips/common_voice_de_{number}.mp3": ""
        for number in range(1, 7)
    }
    home = "cv-corpus-17.0-2024-03-15/de"
    return Path(
        tree(
            files
            | {
                f"{home}/train.tsv": NEW + train,
                f"{home}/dev.tsv": NEW + dev,
                f"{home}/test.tsv": NEW + test,
            }
            | {
                f"{home}/validated.tsv": NEW + train + dev + test + rest,
                f"{home}/other.tsv": NEW + row("b", 6, "Von b."),
            }
        )
    )


def utterances(root: Path, **values: Any) -> list[SourceUtterance]:
    return list(CommonVoice(**({"root": str(root), "languages": ["de"]} | values)).utterances(root))


def test_tables_are_splits(root: Path) -> None:
    found = {utterance.split: utterance for utterance in utterances(root)}
    assert {split: utterance.id for split, utterance in found.items()} == {
        "train": "de/common_voice_de_1",
        "valid": "de/common_voice_de_2",
        "test": "de/common_voice_de_3",
    }
    assert found["train"].text == 'Er sagte "ja".'
    assert found["train"].speaker == "a" * 32
    assert found["train"].label == ""
    assert all(Path(utterance.path).is_file() for utterance in found.values())


def test_the_release_or_the_language_may_be_the_root(root: Path) -> None:
    for place in (root / "cv-corpus-17.0-2024-03-15", root / "cv-corpus-17.0-2024-03-15/de"):
        assert len(utterances(place)) == 3


def test_validated_leaves_out_clips_and_speakers_of_dev_and_test(root: Path) -> None:
    found = utterances(root, train=["validated", "other"])
    assert sorted(utterance.id[-1] for utterance in found if utterance.split == "train") == [
        "1",
        "4",
    ]
    with pytest.raises(ConfigError, match=r"'validated' holds 'train' already"):
        utterances(root, train=["train", "validated"])


def test_labels_from_a_column(root: Path) -> None:
    assert {utterance.label for utterance in utterances(root, label="locale")} == {"de"}
    with pytest.raises(
        DataError, match=r"dev\.tsv: no column 'accent' \(did you mean 'accents'\?\)"
    ):
        utterances(root, label="accent")


def test_releases_of_2019(tree: Any) -> None:
    """`accent` in place of `accents`, no locale, and names without .mp3."""
    table = OLD + "f" * 128 + "\tabcdef\tHello there.\t2\t0\t\t\t\n"
    root = tree({"en/clips/abcdef.mp3": "", "en/train.tsv": table})
    (utterance,) = utterances(root, languages=["en"], valid=[], test=[])
    assert (utterance.id, utterance.text, Path(utterance.path).name) == (
        "en/abcdef",
        "Hello there.",
        "abcdef.mp3",
    )


def test_errors_name_missing_files(root: Path) -> None:
    home = root / "cv-corpus-17.0-2024-03-15/de"
    with pytest.raises(
        DataError,
        match=r"tests\.tsv: not there \(did you mean 'test\.tsv'\?\).*expected <root>/<language>",
    ):
        utterances(root, test=["tests"])
    with pytest.raises(DataError, match=r"/fr: not there.*expected <root>/<language>/\{train"):
        utterances(root, languages=["fr"])
    listed = utterances(root)
    (home / "clips/common_voice_de_2.mp3").unlink()
    assert utterances(root) == listed, "a missing clip is left to prepare, which quarantines it"
    with pytest.raises(DataError, match=r"nowhere: no such folder; .*commonvoice\.mozilla\.org"):
        utterances(root / "nowhere")


def test_two_releases_are_refused(root: Path) -> None:
    (root / "cv-corpus-18.0/de/clips").mkdir(parents=True)
    with pytest.raises(DataError, match=r"set data\.root to the folder of one release"):
        utterances(root)
