import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data import prepare
from hubert_pretrain.data.corpus import Claim
from hubert_pretrain.data.journal import Journal
from hubert_pretrain.data.probe import AudioFacts, probe


@pytest.fixture
def audio(tmp_path: Path) -> str:
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(1_000), 11_025)
    return str(path)


def test_facts_come_back_to_the_bit(tmp_path: Path, audio: str) -> None:
    facts = probe(audio)
    with Journal(tmp_path / "journal") as journal:
        assert journal.find(audio) is None
        journal.add(audio, facts)
    with Journal(tmp_path / "journal") as journal:
        assert journal.find(audio) == facts
        assert journal.find("other.wav") is None
    with Journal(tmp_path / "journal") as journal:  # opening does not lose what is there
        assert journal.find(audio) == facts


def test_a_file_that_changed_is_read_again(tmp_path: Path, audio: str) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.add(audio, probe(audio))
    os.utime(audio, ns=(0, 0))
    with Journal(tmp_path / "journal") as journal:
        assert journal.find(audio) is None


@pytest.mark.parametrize("torn", [b'{"path": "x', b"null\n", b"\xff\xfe\n", b'{"path": "x", "file": [1, 2], "facts": {"old": 1}}\n'])
def test_a_torn_or_foreign_line_is_skipped(tmp_path: Path, audio: str, torn: bytes) -> None:
    facts, path = probe(audio), tmp_path / "journal"
    with Journal(path) as journal:
        journal.add(audio, facts)
    path.write_bytes(path.read_bytes() + torn)
    with Journal(path) as journal:
        assert journal.find(audio) == facts
        assert journal.find("x") is None
        journal.add("x", facts)
    with Journal(path) as journal:
        assert journal.find(audio) == facts


def test_a_killed_run_reads_only_what_is_left(tmp_path: Path, audio: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [Path(audio), tmp_path / "b.wav", tmp_path / "c.wav"]
    for path in paths[1:]:
        soundfile.write(path, 0.1 * np.random.default_rng(1).standard_normal(1_000), 16_000)
    claims = [Claim(id=path.stem, path=path, split="train") for path in paths]
    with Journal(tmp_path / "journal") as journal:
        expected = prepare.measure(claims, journal)
    with Journal(tmp_path / "killed") as journal:
        journal.add(str(paths[1]), probe(paths[1]))
    read: list[str] = []

    def spy(todo: list[str], workers: int) -> list[AudioFacts]:
        read.extend(todo)
        return iter([probe(path) for path in todo])  # type: ignore[return-value]

    monkeypatch.setattr(prepare, "probe_all", spy)
    with Journal(tmp_path / "killed") as journal:
        assert prepare.measure(claims, journal) == expected
    assert read == [str(paths[0]), str(paths[2])]
