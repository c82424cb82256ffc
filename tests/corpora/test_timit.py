from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubert_pretrain.corpora import timit
from hubert_pretrain.corpora.timit import Timit
from hubert_pretrain.data import audio
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

PHONES = "0 3050 h#\n3050 4559 sh\n4559 5723 ix\n5723 6642 hv\n6642 7000 q\n"
TEXT = "0 46797 She had your dark suit in greasy wash water all year.\n"


def sentence(
    folder: str, name: str, suffixes: tuple[str, ...] = ("WAV", "PHN", "TXT", "WRD")
) -> dict[str, str]:
    content = {"PHN": PHONES, "TXT": TEXT}
    return {f"{folder}/{name}.{suffix}": content.get(suffix, "") for suffix in suffixes}


def disc() -> dict[str, str]:
    """Four speakers of the disc: train, core test (DR1), validation (DR1), and another test speaker
    (DR2).
    """
    return {
        **sentence("TRAIN/DR1/FCJF0", "SA1"),
        **sentence("TRAIN/DR1/FCJF0", "SX37"),
        **sentence("TEST/DR1/MDAB0", "SA1"),
        **sentence("TEST/DR1/MDAB0", "SI1039"),
        **sentence("TEST/DR1/FAKS0", "SX43"),
        **sentence("TEST/DR2/FRAM1", "SI522"),
    }


def utterances(root: Path, **values: Any) -> list[SourceUtterance]:
    return list(Timit(root=str(root), **values).utterances(root))


@pytest.mark.parametrize("above", ["", "TIMIT/", "timit/TIMIT/", "data/"])
@pytest.mark.parametrize("lower", [False, True])
def test_splits_in_capitals_or_not(tree: Any, above: str, lower: bool) -> None:
    files = {above + (path.lower() if lower else path): content for path, content in disc().items()}
    found = utterances(tree(files | {f"{above}README.DOC": ""}))
    assert [(utterance.id, utterance.split) for utterance in found] == [
        ("fcjf0-sx37", "train"),
        ("faks0-sx43", "valid"),
        ("mdab0-si1039", "test"),
    ]
    assert found[0].text == "She had your dark suit in greasy wash water all year."
    assert found[0].phones == [
        ("h#", 0, 3050),
        ("sh", 3050, 4559),
        ("ix", 4559, 5723),
        ("hv", 5723, 6642),
        ("q", 6642, 7000),
    ]


def test_full_test_set_and_sa_sentences(tree: Any) -> None:
    root = tree(disc())
    assert [
        utterance.id for utterance in utterances(root, test="full") if utterance.split == "test"
    ] == [
        "mdab0-si1039",
        "fram1-si522",
    ]
    assert [
        utterance.id for utterance in utterances(root, include_sa=True) if "-sa" in utterance.id
    ] == [
        "fcjf0-sa1",
        "mdab0-sa1",
    ]


def test_phones_folded_to_39(tree: Any) -> None:
    found = utterances(tree(disc()), phones=39)
    assert found[0].phones == [
        ("sil", 0, 3050),
        ("sh", 3050, 4559),
        ("ih", 4559, 5723),
        ("hh", 5723, 6642),
    ]
    with pytest.raises(ConfigError, match=r"phones=48: expected 61 or 39"):
        utterances(tree({}), phones=48)


def test_lists_of_speakers_and_phones_are_complete() -> None:
    """24 and 50 test speakers, none in both; the fold takes 61 phones (q is dropped) to 39."""
    assert (len(timit.CORE_TEST_SPEAKERS), len(timit.VALID_SPEAKERS)) == (24, 50)
    assert not timit.CORE_TEST_SPEAKERS & timit.VALID_SPEAKERS
    assert sum(speaker[0] == "f" for speaker in timit.CORE_TEST_SPEAKERS) == 8
    names = "aa ae ah aw ay b ch d dh dx eh er ey f g hh ih iy jh k l m n ng "
    names += "ow oy p r s sh sil t th uh uw v w y z"
    phones = set(names.split())
    folded = timit.FOLD_39
    assert len(phones) == 39
    assert set(folded.values()) - {""} <= phones
    assert not set(folded) & phones
    assert len((phones - {"sil"}) | set(folded)) == 61


def test_sphere_and_riff(tmp_path: Path) -> None:
    """The LDC's files are NIST SPHERE under the name .WAV; copies of them are RIFF, one disc image
    has both.
    """
    samples = (np.sin(np.arange(8000) / 20) * 12000).astype("<i2")
    header = f"NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i {len(samples)}\n"
    header += "sample_rate -i 16000\nsample_n_bytes -i 2\n"
    header += "sample_byte_format -s2 01\nsample_sig_bits -i 16\nsample_coding -s3 pcm\nend_head\n"
    folder = tmp_path / "TRAIN/DR1/FCJF0"
    folder.mkdir(parents=True)
    (tmp_path / "TEST").mkdir()
    (folder / "SX37.WAV").write_bytes(header.encode().ljust(1024) + samples.tobytes())
    (folder / "SX37.WAV.wav").touch()
    (folder / "SX38.WAV.wav").touch()
    for name in ("SX37", "SX38"):
        (folder / f"{name}.PHN").write_text(PHONES)
        (folder / f"{name}.TXT").write_text(TEXT)
    sphere, riff = utterances(tmp_path)
    assert (Path(sphere.path).name, Path(riff.path).name) == ("SX37.WAV", "SX38.WAV.wav")
    np.testing.assert_array_equal(audio.read(sphere.path), samples.astype(np.float32) / 32768)


@pytest.mark.parametrize(
    ("phones", "message"),
    [
        ("0 10\n", "line 1 is '0 10', expected 'start end label' in samples"),
        ("10 5 sh\n", "line 1: 'sh' ends at 5, before its start 10"),
        ("0 1000 sh\n500 2000 ix\n", r"'ix' begins at 0\.031 s, before 'sh' ends at 0\.062 s"),
        ("a b sh\n", "line 1: start is 'a', expected a whole number"),
    ],
    ids=["two columns", "backwards", "overlap", "no numbers"],
)
def test_an_error_names_bad_phones(tree: Any, phones: str, message: str) -> None:
    found = utterances(tree(disc() | {"TRAIN/DR1/FCJF0/SX37.PHN": phones}))
    (fault,) = (one.fault for one in found if one.fault)
    assert re.search(rf"SX37\.PHN: .*{message}", fault)


def test_errors_name_missing_files(tree: Any) -> None:
    root = tree(disc())
    (root / "TRAIN/DR1/FCJF0/SX37.PHN").unlink()
    (fault,) = (one.fault for one in utterances(root) if one.fault)
    assert fault.startswith("no .PHN beside it; ")
    (root / "TRAIN").rename(root / "TRIAN")
    with pytest.raises(
        DataError,
        match=r"TRAIN: not there \(did you mean 'TRIAN'\?\).*expected <root>/\{TRAIN,TEST\}",
    ):
        utterances(root)
    with pytest.raises(
        DataError, match=r"nowhere: no such folder; .*Linguistic Data Consortium, LDC93S1"
    ):
        utterances(root / "nowhere")
    with pytest.raises(
        ConfigError, match=r"test='cor': expected core or full \(did you mean 'core'\?\)"
    ):
        utterances(root, test="cor")
