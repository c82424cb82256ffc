import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data import prepare
from hubert_pretrain.data.claims import COLUMNS, gather
from hubert_pretrain.data.corpus import Claim
from hubert_pretrain.data.journal import RECORD, Journal, facts_of, identity
from hubert_pretrain.data.probe import Recording, probe, probe_all
from hubert_pretrain.data.quarantine import Quarantine
from hubert_pretrain.data.storage import Location
from hubert_pretrain.data.tables import Spool
from hubert_pretrain.data.tally import WHOLE, AudioFacts


@pytest.fixture
def audio(tmp_path: Path) -> Location:
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(1_000), 11_025)
    return Location(str(path))


def found(journal: Journal, location: Location, segment: tuple[int, int | None] = WHOLE) -> AudioFacts | None:
    number = journal.find(location, segment, identity(location))
    return None if number < 0 else facts_of(journal.records()[number])


def test_facts_come_back_to_the_bit(tmp_path: Path, audio: Location) -> None:
    facts = probe(audio.path)
    with Journal(tmp_path / "journal") as journal:
        assert found(journal, audio) is None
        assert journal.add(audio, WHOLE, identity(audio), facts) == 0
        assert facts_of(journal.records()[0]) == facts
    for _ in range(2):  # opening does not lose what is there
        with Journal(tmp_path / "journal") as journal:
            assert found(journal, audio) == facts
            assert found(journal, Location("other.wav")) is None
            assert found(journal, audio, (0, 500)) is None
            assert found(journal, Location(audio.path, 0, 10)) is None


def test_a_file_that_changed_is_read_again(tmp_path: Path, audio: Location) -> None:
    facts = probe(audio.path)
    with Journal(tmp_path / "journal") as journal:
        journal.add(audio, WHOLE, identity(audio), facts)
    os.utime(audio.path, ns=(0, 0))
    with Journal(tmp_path / "journal") as journal:
        assert found(journal, audio) is None
        assert journal.add(audio, WHOLE, identity(audio), facts) == 1
    with Journal(tmp_path / "journal") as journal:
        assert found(journal, audio) == facts


@pytest.mark.parametrize("torn", [b"half", bytes(RECORD.itemsize), bytes(range(RECORD.itemsize)), b"x" * (3 * RECORD.itemsize + 5)])
def test_a_torn_or_foreign_record_is_dropped(tmp_path: Path, audio: Location, torn: bytes) -> None:
    facts, path = probe(audio.path), tmp_path / "journal"
    with Journal(path) as journal:
        journal.add(audio, WHOLE, identity(audio), facts)
    path.write_bytes(path.read_bytes() + torn)
    with Journal(path) as journal:
        assert found(journal, audio) == facts
        assert journal.add(audio, (0, 400), identity(audio), facts) == 1
    with Journal(path) as journal:
        assert found(journal, audio) == found(journal, audio, (0, 400)) == facts


@pytest.mark.parametrize("byte", [0, 20, 50, 100, RECORD.itemsize - 1])
def test_a_flipped_bit_is_found(tmp_path: Path, audio: Location, byte: int) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.add(audio, WHOLE, identity(audio), probe(audio.path))
    content = bytearray(path.read_bytes())
    content[byte] ^= 16
    path.write_bytes(content)
    with Journal(path) as journal:
        assert found(journal, audio) is None


class Three:
    """A corpus of two files and two segments of a third."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / f"{name}.wav" for name in "abc"]
        for seed, path in enumerate(self.paths):
            soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(2_000), 16_000)

    def utterances(self, folder: Path) -> Iterator[Claim]:
        for path in self.paths[:2]:
            yield Claim(id=path.stem, path=path, split="train")
        for start in (1_000, 0):
            yield Claim(id=f"c-{start}", path=self.paths[2], split="train", start=start, num_samples=1_000)


def measured(source: Three, folder: Path, journal: Journal) -> list[AudioFacts]:
    with Spool(folder / "claims", COLUMNS) as spool, Quarantine(folder / "bad") as bad:
        claims = gather(source, folder, spool)
        result = prepare.measure(claims, journal, bad)
        assert len(bad) == 0
        return [facts_of(journal.records()[result.record[place]]) for place in claims.by_id]


def test_a_killed_run_reads_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Three(tmp_path)
    with Journal(tmp_path / "journal") as journal:
        expected = measured(source, tmp_path, journal)
    second, third = (Location(str(path)) for path in source.paths[1:])
    with Journal(tmp_path / "killed") as journal:
        journal.add(second, WHOLE, identity(second), expected[1])
        journal.add(third, (1_000, 1_000), identity(third), expected[3])
    read: list[Recording] = []

    def spy(recordings: Iterable[Recording], workers: int, cache: None) -> Iterator[list[AudioFacts | str]]:
        for recording in recordings:
            read.append(recording)
            yield from probe_all([recording], workers, cache)

    monkeypatch.setattr(prepare, "probe_all", spy)
    with Journal(tmp_path / "killed") as journal:
        assert measured(source, tmp_path, journal) == expected
    assert read == [Recording(Location(str(source.paths[0])), [WHOLE]), Recording(third, [(0, 1_000)])]
