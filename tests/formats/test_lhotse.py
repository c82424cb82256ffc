"""Cut sets of lhotse."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError

from .conftest import read_manifest, write, write_audio

CUT: dict[str, Any] = {
    "id": "c",
    "start": 0.25,
    "duration": 0.5,
    "channel": 0,
    "supervisions": [
        {
            "id": "2",
            "recording_id": "r",
            "start": 0.3,
            "duration": 0.2,
            "channel": 0,
            "text": "YOU",
            "speaker": "x",
        },
        {
            "id": "1",
            "recording_id": "r",
            "start": 0.0,
            "duration": 0.3,
            "channel": 0,
            "text": "HI",
            "speaker": "x",
            "alignment": {"phone": [["h", 0.25, 0.125, None], ["i", 0.375, 0.125, None]]},
        },
    ],
    "recording": {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
        "sampling_rate": 16000,
        "num_samples": 16000,
        "duration": 1.0,
        "channel_ids": [0],
    },
    "type": "MonoCut",
}


def cut(place: Path, change: Callable[[dict[str, Any]], Any]) -> SourceUtterance:
    row = json.loads(json.dumps(CUT))
    change(row)
    (utterance,) = read_manifest(write(place / "cuts_dev-clean.jsonl", json.dumps(row) + "\n"))
    return utterance


def test_a_cut(place: Path) -> None:
    utterance = cut(place, lambda row: None)
    assert utterance == SourceUtterance(
        id="c",
        path=str(place / "a.wav"),
        split="valid",
        start=4000,
        num_samples=8000,
        text="HI YOU",
        speaker="x",
        phones=[("h", 0, 2000), ("i", 2000, 4000)],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(type="MixedCut"), "line 1: is a MixedCut, expected a MonoCut"),
        (lambda row: row.update(type="PaddingCut"), "is a PaddingCut"),
        (lambda row: row.update(channel=1), "is about channel 1, expected one of its recording"),
        (lambda row: row.update(channel=[0, 1]), r"is about channel \[0, 1\]"),
        (
            lambda row: row["recording"]["sources"][0].update(type="command", source="rm -rf /"),
            "is the command 'rm -rf /', .*code to execute",
        ),
        (
            lambda row: row["recording"]["sources"][0].update(type="memory"),
            "is of type 'memory', expected file or url",
        ),
        (
            lambda row: row["recording"].update(transforms=[{"name": "Speed"}]),
            "changed while it is read",
        ),
        (lambda row: row.pop("recording"), "is a cut without its recording"),
        (lambda row: row.update(start=2.0), r"begins at 2\.0 s of a recording of 1 s"),
        (lambda row: row.update(duration=-1), "duration is -1, expected a number"),
        (lambda row: row.pop("id"), r"is no MonoCut of lhotse \(KeyError: 'id'\)"),
        (lambda row: row.update(supervisions=3), "is no MonoCut of lhotse"),
    ],
)
def test_other_cuts_are_refused(
    place: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        cut(place, change)


# -- recordings, supervisions, Shar: as lhotse 1.33 writes them

RECORDINGS = [
    {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": f"{name}.wav"}],
        "sampling_rate": rate,
        "num_samples": rate,
        "duration": 1.0,
        "channel_ids": [0],
    }
    for name, rate in (("a", 16_000), ("b", 8_000))
]
SUPERVISIONS = [
    {
        "id": f"{name}-{number}",
        "recording_id": name,
        "start": 0.25 * number,
        "duration": 0.5,
        "channel": 0,
        "text": f"T{number}",
        "language": "en",
        "speaker": "s",
        "alignment": {"phone": [["h", 0.25 * number, 0.25, None]]},
    }
    for name in "ab"
    for number in range(2)
]


def write_items(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([[0]], ("0.wav", None)),
        ([[0, 1]], ("0.wav", 1)),
        ([[2, 1, 0]], ("0.wav", 1)),
        ([[0], [1]], ("1.wav", None)),
        ([[0], [1, 2]], ("1.wav", 0)),
    ],
)
def test_channels_of_recordings(
    tmp_path: Path, sources: list[list[int]], expected: tuple[str, int | None]
) -> None:
    named = [
        {"type": "file", "channels": channels, "source": f"{number}.wav"}
        for number, channels in enumerate(sources)
    ]
    row = CUT | {"recording": CUT["recording"] | {"sources": named}}
    row["channel"] = min(1, sum(map(len, sources)) - 1)
    (one,) = read_manifest(write_items(tmp_path / "cuts.jsonl", [row]))
    assert (Path(one.path).name, one.channel) == expected


@pytest.mark.parametrize("given", ["", "x_recordings_dev.jsonl.gz", "x_supervisions_dev.jsonl"])
def test_supervisions_are_joined_with_their_recordings(tmp_path: Path, given: str) -> None:
    home = tmp_path / "lists"
    write_items(home / "x_recordings_dev.jsonl.gz", RECORDINGS)
    write_items(home / "x_supervisions_dev.jsonl", SUPERVISIONS)
    found = read_manifest(home / given)
    assert [
        (one.id, Path(one.path).name, one.start, one.num_samples, one.text, one.speaker, one.split)
        for one in found
    ] == [
        ("a-0", "a.wav", 0, 8000, "T0", "s", "valid"),
        ("a-1", "a.wav", 4000, 8000, "T1", "s", "valid"),
        ("b-0", "b.wav", 0, 8000, "T0", "s", "valid"),
        ("b-1", "b.wav", 4000, 8000, "T1", "s", "valid"),
    ]
    assert [one.phones for one in found] == [[("h", 0, 4000)]] * 4


def test_recordings_without_supervisions_and_the_reverse(tmp_path: Path) -> None:
    path = write_items(tmp_path / "recordings.jsonl", RECORDINGS)
    assert [(one.id, one.num_samples, one.expected_samples) for one in read_manifest(path)] == [
        ("a", None, 16000),
        ("b", None, 16000),
    ]
    path.unlink()
    path = write_items(tmp_path / "supervisions.jsonl", SUPERVISIONS)
    with pytest.raises(DataError, match=r"has supervisions, expected their recordings beside it"):
        read_manifest(path)
    write_items(tmp_path / "recordings.jsonl", RECORDINGS[:1])
    with pytest.raises(DataError, match=r"line 3: is of recording 'b', which is not in .*record"):
        read_manifest(path)


def test_cuts_of_a_folder_are_read_in_place_of_what_they_were_made_of(tmp_path: Path) -> None:
    home = tmp_path / "lists"
    write_items(home / "recordings.jsonl", RECORDINGS)
    write_items(home / "supervisions.jsonl", SUPERVISIONS)
    write_items(home / "cuts.jsonl", [CUT])
    with pytest.warns(UserWarning, match=r"its cuts are read, not recordings.jsonl, superv"):
        assert [one.id for one in read_manifest(home)] == ["c"]


def resample(rate: int) -> dict[str, Any]:
    values = {"source_sampling_rate": 8_000, "target_sampling_rate": rate}
    return {"name": "Resample", "kwargs": values}


def test_recordings_that_are_resampled(tmp_path: Path) -> None:
    """Everything is resampled to 16 kHz here; a lower rate would change the sound."""
    row = RECORDINGS[0] | {"transforms": [resample(16_000)]}
    (one,) = read_manifest(write_items(tmp_path / "recordings.jsonl", [row]))
    assert one.expected_samples == 16_000
    row = row | {"transforms": [resample(8_000), resample(16_000)]}
    path = write_items(tmp_path / "recordings.jsonl", [row])
    with pytest.raises(DataError, match=r"transforms other than Resample to at least 16000 Hz"):
        read_manifest(path)


def shar(folder: Path, names: list[str], audio: list[Path]) -> Path:
    """Two cuts in a shard; the audio of the last one was left out."""
    for number, first in enumerate(range(0, len(names), 2)):
        part = names[first : first + 2]
        source = {"type": "shar", "channels": [0], "source": ""}
        recording = RECORDINGS[0] | {"num_samples": 8_000, "duration": 0.5, "sources": [source]}
        cuts = [
            {"id": name, "start": 0, "duration": 0.5, "channel": 0, "supervisions": []}
            | {"recording": recording, "type": "MonoCut"}
            for name in part
        ]
        write_items(folder / f"cuts.{number:06}.jsonl.gz", cuts)
        with tarfile.open(folder / f"recording.{number:06}.tar", "w") as tar:
            for name, path in zip(part, audio[first:], strict=False):
                for suffix, data in ((".flac", path.read_bytes()), (".json", b"{}")):
                    info = tarfile.TarInfo(name + suffix)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def test_shar(tmp_path: Path) -> None:
    """Names with dots are those of lhotse's cuts, too."""
    audio = [write_audio(tmp_path / f"{i}.flac", 8_000, seed=i) for i in range(3)]
    home = shar(tmp_path / "shar", ["a.1", "a.2-0", "b"], audio)
    found = read_manifest(home)
    assert [(one.id, one.expected_samples) for one in found] == [
        ("a.1", 8000),
        ("a.2-0", 8000),
        ("b", 8000),
    ]
    for one, path in zip(found, audio, strict=True):
        data = Path(one.path).read_bytes()[one.offset : one.offset + one.num_bytes]
        assert data == path.read_bytes()
    shar(home, ["a.1", "a.2-0", "c"], audio[:1])
    with pytest.raises(DataError, match=r"recording\.000000\.tar: has more or fewer recordings"):
        read_manifest(home)
    shar(home, ["x", "y", "z"], audio)
    write_items(home / "cuts.000000.jsonl.gz", [CUT | {"recording": RECORDINGS[0]}])
    with pytest.raises(DataError, match=r"is cut 'c', .*recording\.000000\.tar has 'x' in its"):
        read_manifest(home)
