from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.voxpopuli import VoxPopuli
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

EVENT = "20190401-0900-PLENARY"
HEADER = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\n"


def utterances(root: Path, **values: Any) -> list[SourceUtterance]:
    return list(VoxPopuli(**({"root": str(root), "languages": ["en"]} | values)).utterances(root))


@pytest.fixture
def root(tree: Any) -> Path:
    """All parts, in English: the output of the publisher's scripts and the raw recordings."""
    asr = {
        f"transcribed_data/en/asr_{split}.tsv": HEADER
        + f'{id}\tHe said "yes".\the said yes\t12{number}\t{split}\tmale\n'
        for number, (split, id) in enumerate(
            [("train", f"{EVENT}-en_1"), ("dev", f"{EVENT}-en_2"), ("test", f"{EVENT}-en_3")]
        )
    }
    segments = "event_id\tsegment_no\tstart\tend\n"
    segments += f"{EVENT}-3_en\t0\t1.5\t21.25\n{EVENT}-3_en\t1\t30\t31\n"
    segments += f"{EVENT}-3_de\t0\t0\t9\n20200101-0900-PLENARY_en\t0\t0\t9\n"
    return Path(
        tree(
            asr
            | {f"transcribed_data/en/2019/{EVENT}-en_{number}.ogg": "" for number in (1, 2, 3)}
            | {f"unlabelled_data/en/2019/{EVENT}-3_en_{number}.ogg": "" for number in (0, 1)}
            | {
                "unlabelled_data/en/2012/20120101-0900-PLENARY_en_0.ogg": "",
                "unlabelled_data/unlabelled_v2.tsv.gz": "",
            }
            | {
                f"raw_audios/en/2019/{EVENT}-3_en.ogg": "",
                "unlabelled_v2.tsv.gz": gzip.compress(segments.encode()),
            }
        )
    )


def test_unlabelled_segments_of_some_years(root: Path) -> None:
    assert [utterance.id for utterance in utterances(root)] == [
        "20120101-0900-PLENARY_en_0",
        f"{EVENT}-3_en_0",
        f"{EVENT}-3_en_1",
    ]
    assert [(utterance.label, utterance.split) for utterance in utterances(root, years=[2019])] == [
        ("en", "train")
    ] * 2


def test_transcribed_speech_in_its_splits(root: Path) -> None:
    found = utterances(root, part="transcribed")
    assert [(utterance.split, utterance.text, utterance.speaker) for utterance in found] == [
        ("train", "he said yes", "120"),
        ("valid", "he said yes", "121"),
        ("test", "he said yes", "122"),
    ]
    assert utterances(root, part="transcribed", text="raw_text")[0].text == 'He said "yes".'


def test_raw_recordings_are_cut_by_the_table(root: Path) -> None:
    found = utterances(root, part="raw", years=[2019])
    assert [(utterance.id, utterance.start, utterance.num_samples) for utterance in found] == [
        (f"{EVENT}-3_en_0", 24000, 316000),
        (f"{EVENT}-3_en_1", 480000, 16000),
    ]
    assert {Path(utterance.path).name for utterance in found} == {f"{EVENT}-3_en.ogg"}


def test_errors_name_missing_files(root: Path) -> None:
    with pytest.raises(
        DataError, match=r"raw_audios/en/2020: not there.*found 2019; expected <root>/raw_audios"
    ):
        utterances(root, part="raw", years=[2019, 2020])
    with pytest.raises(
        DataError, match=r"unlabelled_data/de: not there.*expected <root>/unlabelled_data"
    ):
        utterances(root, languages=["de"])
    with pytest.raises(ConfigError, match=r"languages='eng': expected en, de, .*did you mean 'en'"):
        utterances(root, languages=["eng"])
    with pytest.raises(
        ConfigError,
        match=r"part='unlabeled': expected raw, unlabelled or transcribed "
        r"\(did you mean 'unlabelled'\?\)",
    ):
        utterances(root, part="unlabeled")
    (root / "unlabelled_v2.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(
        DataError,
        match=r"unlabelled_v2\.tsv\.gz: no column 'event_id', it has no gzip; "
        r"is it a table of this corpus",
    ):
        utterances(root, part="raw", years=[2019])


def test_only_raw_recordings_are_downloaded(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"part=unlabelled: only raw is downloaded"):
        VoxPopuli(root=str(root), languages=["en"]).download()
