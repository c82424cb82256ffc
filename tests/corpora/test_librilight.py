from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.corpora.librilight import LibriLight, LibriLightLimited, cut
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

BOOK = "small/100/sea_fairies_0812_librivox_64kb_mp3"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two recordings of one speaker as the archives unpack: 10 s and 4 s, with their .json."""
    for name, seconds, activity in [
        ("01_baum_64kb", 10, [[0.5, 2.0], [2.4, 4.0], [7.0, 10.08]]),
        ("02_baum_64kb", 4, [[0.0, 4.0]]),
    ]:
        path = tmp_path / BOOK / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.zeros(seconds * 16000), 16000)
        metadata = {
            "speaker": "100",
            "book_meta": {"id": "1"},
            "snr": 5.4,
            "voice_activity": activity,
        }
        path.with_suffix(".json").write_text(json.dumps(metadata))
    return tmp_path


def utterances(root: Path, **values: Any) -> list[SourceUtterance]:
    return list(LibriLight(**({"root": str(root), "subsets": ["small"]} | values)).utterances(root))


def test_segments_follow_the_voice_activity(root: Path) -> None:
    found = utterances(root, max_seconds=5.0, max_pause_seconds=1.0)
    assert [(utterance.id, utterance.start, utterance.num_samples) for utterance in found] == [
        # A pause of 0.4 s is inside a segment, one of 3 s ends it.
        (f"{BOOK}/01_baum_64kb_0000", 8000, 56000),
        # The voice activity ends 0.08 s after the recording.
        (f"{BOOK}/01_baum_64kb_0001", 112000, 48000),
        (f"{BOOK}/02_baum_64kb_0000", 0, 64000),
    ]
    assert {(utterance.speaker, utterance.split) for utterance in found} == {("100", "train")}


def test_long_speech_is_cut_into_equal_parts(root: Path) -> None:
    found = utterances(root, max_seconds=1.5)
    assert [
        (utterance.start, utterance.num_samples) for utterance in found if "02_" in utterance.id
    ] == [
        (0, 21333),
        (21333, 21334),
        (42667, 21333),
    ]


def test_whole_recordings_need_no_json(root: Path) -> None:
    (root / BOOK / "01_baum_64kb.json").unlink()
    found = utterances(root, max_seconds=None)
    assert [(utterance.id, utterance.start, utterance.num_samples) for utterance in found] == [
        (f"{BOOK}/01_baum_64kb", 0, None),
        (f"{BOOK}/02_baum_64kb", 0, None),
    ]
    first, *others = utterances(root)
    assert first.fault.startswith("no .json beside it, and it cannot be cut without; ")
    assert "max_seconds=null" in first.fault
    assert [one.id for one in others if not one.fault] == [f"{BOOK}/02_baum_64kb_0000"]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"voice_activity": [[1]]}', '{"voice_activity": 3}']
)
def test_an_error_names_a_malformed_json(root: Path, content: str) -> None:
    (root / BOOK / "01_baum_64kb.json").write_text(content)
    first, *others = utterances(root)
    found = r"01_baum_64kb\.json: no list of \[start, end\] in seconds under 'voice_activity'"
    assert re.search(found, first.fault)
    assert [one.id for one in others if not one.fault] == [f"{BOOK}/02_baum_64kb_0000"]


def test_a_recording_that_cannot_be_opened_is_left_to_prepare(root: Path) -> None:
    (root / BOOK / "01_baum_64kb.flac").write_bytes(b"garbage")
    assert [utterance.num_samples for utterance in utterances(root)] == [None, 64000]


def test_a_missing_subset_names_the_nearest(root: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"smal: not there \(did you mean 'small'\?\), found small; "
        r"expected <root>/\{small,medium,large\}",
    ):
        utterances(root, subsets=["smal"])
    with pytest.raises(DataError, match=r"nowhere: no such folder; .*libri-light"):
        utterances(root / "nowhere")
    with pytest.raises(ConfigError, match=r"max_seconds=0: expected more than 0, or null"):
        utterances(root, max_seconds=0)


intervals = st.lists(st.tuples(st.floats(0, 30), st.floats(0.05, 80)), max_size=12)


@given(intervals, st.floats(1, 40), st.floats(0, 10))
def test_every_second_of_speech_is_in_one_segment(
    gaps: list[tuple[float, float]], max_seconds: float, max_pause: float
) -> None:
    activity = []
    now = 0.0
    for gap, length in gaps:
        activity.append((now + gap, now + gap + length))
        now += gap + length
    pieces = list(cut(activity, max_seconds, max_pause))
    assert all(end - start <= max_seconds * 1.001 for start, end in pieces)
    assert all(one[1] <= other[0] + 1e-9 for one, other in pairwise(pieces))
    for start, end in activity:
        inside = sum(max(0.0, min(end, stop) - max(start, first)) for first, stop in pieces)
        assert inside == pytest.approx(end - start)


# -- librispeech_finetuning


@pytest.fixture
def limited(tmp_path: Path) -> Path:
    """The tree of librispeech_finetuning.tgz, one chapter in each part, and LibriSpeech's dev-other
    beside it.
    """
    for number, part in enumerate(
        [f"1h/{fold}/{kind}" for fold in range(6) for kind in ("clean", "other")]
        + ["9h/clean", "9h/other"]
    ):
        chapter(tmp_path / "librispeech_finetuning" / part, str(100 + number), "7")
    chapter(tmp_path / "LibriSpeech/dev-other", "116", "288045")
    (tmp_path / "librispeech_finetuning/phones").mkdir()
    return tmp_path


def chapter(folder: Path, speaker: str, name: str) -> None:
    place = folder / speaker / name
    place.mkdir(parents=True)
    (place / f"{speaker}-{name}-0000.flac").touch()
    (place / f"{speaker}-{name}.trans.txt").write_text(f"{speaker}-{name}-0000 A TEXT\n")


@pytest.mark.parametrize(("size", "count"), [("10min", 2), ("1h", 12), ("10h", 14)])
def test_the_three_sizes(limited: Path, size: str, count: int) -> None:
    for root in (limited, limited / "librispeech_finetuning"):
        found = list(LibriLightLimited(root=str(root), size=size).utterances(limited))
        assert len(found) == count
        assert {(utterance.split, utterance.text) for utterance in found} == {("train", "A TEXT")}


def test_a_fold_of_ten_minutes(limited: Path) -> None:
    found = list(LibriLightLimited(root=str(limited), size="10min", fold=2).utterances(limited))
    assert [utterance.speaker for utterance in found] == ["104", "105"]
    with pytest.raises(ConfigError, match=r"fold=6: expected 0 to 5"):
        LibriLightLimited(root=str(limited), size="10min", fold=6)
    with pytest.raises(
        ConfigError, match=r"size='10m': expected 10min, 1h or 10h \(did you mean '10min'\?\)"
    ):
        LibriLightLimited(root=str(limited), size="10m")


def test_a_part_may_have_the_transcript_of_the_whole_chapter(limited: Path) -> None:
    transcript = limited / "librispeech_finetuning/9h/clean/112/7/112-7.trans.txt"
    transcript.write_text("112-7-0000 A TEXT\n112-7-0001 NOT IN THIS PART\n")
    assert len(list(LibriLightLimited(root=str(limited), size="10h").utterances(limited))) == 14


def test_dev_and_test_are_those_of_librispeech(limited: Path) -> None:
    found = list(
        LibriLightLimited(root=str(limited), size="1h", valid=["dev-other"]).utterances(limited)
    )
    assert [utterance.id for utterance in found if utterance.split == "valid"] == [
        "116-288045-0000"
    ]
    with pytest.raises(DataError, match=r"test-other: no such subset .*found dev-other"):
        list(
            LibriLightLimited(root=str(limited), size="1h", test=["test-other"]).utterances(limited)
        )


def test_a_missing_part_shows_the_layout(limited: Path) -> None:
    (limited / "librispeech_finetuning/1h/3").rename(limited / "librispeech_finetuning/1h/three")
    with pytest.raises(
        DataError, match=r"1h/3/clean: not there.*expected <root>/librispeech_finetuning/\{1h"
    ):
        list(LibriLightLimited(root=str(limited), size="1h").utterances(limited))
