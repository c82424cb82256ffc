import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.arrow_table import ColumnSpool
from hubert_pretrain.data.preparation import build
from hubert_pretrain.data.preparation.audio_stats import WHOLE, AudioFacts, Segment
from hubert_pretrain.data.preparation.quarantine import Quarantine
from hubert_pretrain.data.preparation.raw_utterances import COLUMNS, collect
from hubert_pretrain.data.preparation.scan import Recording, scan, scan_all
from hubert_pretrain.data.preparation.scan_journal import RECORD, ScanJournal, facts_of, identity
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.data.storage import Location


@pytest.fixture
def audio(tmp_path: Path) -> Location:
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(1_000), 11_025)
    return Location(str(path))


def found(
    journal: ScanJournal, location: Location, segment: tuple[int, int | None] = WHOLE
) -> AudioFacts | None:
    number = journal.find(location, segment, identity(location))
    return None if number < 0 else facts_of(journal.records()[number])


def test_facts_come_back_to_the_bit(tmp_path: Path, audio: Location) -> None:
    facts = scan(audio.path)
    with ScanJournal(tmp_path / "journal") as journal:
        assert found(journal, audio) is None
        assert journal.add(audio, WHOLE, identity(audio), facts) == 0
        assert facts_of(journal.records()[0]) == facts
    for _ in range(2):  # opening does not lose what is there
        with ScanJournal(tmp_path / "journal") as journal:
            assert found(journal, audio) == facts
            assert found(journal, Location("other.wav")) is None
            assert found(journal, audio, (0, 500)) is None
            assert found(journal, Location(audio.path, 0, 10)) is None


def test_a_file_that_changed_is_read_again(tmp_path: Path, audio: Location) -> None:
    facts = scan(audio.path)
    with ScanJournal(tmp_path / "journal") as journal:
        journal.add(audio, WHOLE, identity(audio), facts)
    os.utime(audio.path, ns=(0, 0))
    with ScanJournal(tmp_path / "journal") as journal:
        assert found(journal, audio) is None
        assert journal.add(audio, WHOLE, identity(audio), facts) == 1
    with ScanJournal(tmp_path / "journal") as journal:
        assert found(journal, audio) == facts


@pytest.mark.parametrize(
    "torn",
    [
        b"half",
        bytes(RECORD.itemsize),
        bytes(range(RECORD.itemsize)),
        b"x" * (3 * RECORD.itemsize + 5),
    ],
)
def test_a_torn_or_foreign_record_is_dropped(tmp_path: Path, audio: Location, torn: bytes) -> None:
    facts = scan(audio.path)
    path = tmp_path / "journal"
    with ScanJournal(path) as journal:
        journal.add(audio, WHOLE, identity(audio), facts)
    path.write_bytes(path.read_bytes() + torn)
    with ScanJournal(path) as journal:
        assert found(journal, audio) == facts
        assert journal.add(audio, (0, 400), identity(audio), facts) == 1
    with ScanJournal(path) as journal:
        assert found(journal, audio) == found(journal, audio, (0, 400)) == facts


@pytest.mark.parametrize("byte", [0, 20, 50, 100, RECORD.itemsize - 1])
def test_a_flipped_bit_is_found(tmp_path: Path, audio: Location, byte: int) -> None:
    path = tmp_path / "journal"
    with ScanJournal(path) as journal:
        journal.add(audio, WHOLE, identity(audio), scan(audio.path))
    content = bytearray(path.read_bytes())
    content[byte] ^= 16
    path.write_bytes(content)
    with ScanJournal(path) as journal:
        assert found(journal, audio) is None


class Three:
    """A corpus of two files and two segments of a third."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / f"{name}.wav" for name in "abc"]
        for seed, path in enumerate(self.paths):
            soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(2_000), 16_000)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        for path in self.paths[:2]:
            yield SourceUtterance(id=path.stem, path=path, split="train")
        for start in (1_000, 0):
            yield SourceUtterance(
                id=f"c-{start}", path=self.paths[2], split="train", start=start, num_samples=1_000
            )


def scanned(source: Three, folder: Path, journal: ScanJournal) -> list[AudioFacts]:
    with ColumnSpool(folder / "utterances", COLUMNS) as spool, Quarantine(folder / "bad") as bad:
        utterances = collect(source, folder, spool, bad)
        result = build.scan_corpus(utterances, journal, bad)
        assert len(bad) == 0
        return [
            facts_of(journal.records()[result.record[position]]) for position in utterances.by_id
        ]


def test_a_killed_run_reads_only_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Three(tmp_path)
    with ScanJournal(tmp_path / "journal") as journal:
        expected = scanned(source, tmp_path, journal)
    second, third = (Location(str(path)) for path in source.paths[1:])
    with ScanJournal(tmp_path / "killed") as journal:
        journal.add(second, WHOLE, identity(second), expected[1])
        journal.add(third, (1_000, 1_000), identity(third), expected[3])
    read: list[Recording] = []

    def spy(
        recordings: Iterable[Recording], workers: int, cache: None, recoder: None
    ) -> Iterator[list[AudioFacts | str]]:
        for recording in recordings:
            read.append(recording)
            yield from scan_all([recording], workers, cache)

    monkeypatch.setattr(build, "scan_all", spy)
    with ScanJournal(tmp_path / "killed") as journal:
        assert scanned(source, tmp_path, journal) == expected
    assert read == [
        Recording(Location(str(source.paths[0])), [WHOLE]),
        Recording(third, [Segment(0, 1_000)]),
    ]
