"""Speed perturbation: pitch, exact lengths and alignments, no leak into validation, resuming."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.corpora.speed_perturbation import SpeedPerturbation, change_speed, rate_of
from hubert_pretrain.data import audio
from hubert_pretrain.data.preparation.scan import scan
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import SAMPLE_RATE

TONE = 1000.0


@dataclasses.dataclass
class Tones:
    """A corpus of tones."""

    root: Path
    splits: tuple[str, ...] = ("train",) * 40 + ("test",) * 4
    num_samples: int = 8000

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        for number, split in enumerate(self.splits):
            path = self.root / f"t{number:02d}.flac"
            if not path.exists():
                time = np.arange(self.num_samples + number) / SAMPLE_RATE
                soundfile.write(path, 0.5 * np.sin(2 * np.pi * TONE * time), SAMPLE_RATE)
            phones = [("a", 0, 3000), ("b", 3000, 3001), ("c", 5000, self.num_samples)]
            yield SourceUtterance(
                id=f"t{number:02d}",
                path=path,
                split=split,
                speaker=f"s{number % 3}",
                text="A B C",
                phones=phones,
            )


def utterances_of(source: SpeedPerturbation, folder: Path) -> dict[str, SourceUtterance]:
    found = list(source.utterances(folder))
    assert len({utterance.id for utterance in found}) == len(found)
    return {utterance.id: utterance for utterance in found}


@given(factor=st.sampled_from([0.5, 0.9, 0.95, 1.1, 1.25, 2.0]), length=st.integers(1000, 30_000))
def test_pitch_and_length_change_by_the_factor(factor: float, length: int) -> None:
    waveform = np.sin(2 * np.pi * TONE * np.arange(length) / SAMPLE_RATE).astype(np.float32)
    faster = change_speed(waveform, factor)
    assert abs(len(faster) - length / factor) <= 0.5
    middle = slice(len(faster) // 4, -len(faster) // 4)
    expected = np.sin(2 * np.pi * TONE * factor * np.arange(len(faster)) / SAMPLE_RATE)
    np.testing.assert_allclose(faster[middle], expected[middle], atol=0.01)


def test_only_train_utterances_are_copied(tmp_path: Path) -> None:
    utterances = utterances_of(SpeedPerturbation(corpus=Tones(tmp_path)), tmp_path / "prepare")
    splits = {
        split: {name for name, utterance in utterances.items() if utterance.split == split}
        for split in ("train", "test")
    }
    assert splits["test"] == {f"t{number}" for number in range(40, 44)}
    originals = {f"t{n:02d}" for n in range(40)}
    assert splits["train"] == originals | {
        f"{name}-speed{factor}" for name in originals for factor in ("0.9", "1.1")
    }
    for name, utterance in utterances.items():
        assert utterance.original == (name.partition("-")[0] if "speed" in name else "")
    assert {utterance.corpus for utterance in utterances.values()} == {"tones"}
    assert {utterance.text for utterance in utterances.values()} == {"A B C"}


def test_a_corpus_with_its_own_valid_split_keeps_it(tmp_path: Path) -> None:
    utterances = utterances_of(
        SpeedPerturbation(corpus=Tones(tmp_path, splits=("train", "train", "valid"))),
        tmp_path / "prepare",
    )
    assert [name for name, utterance in utterances.items() if utterance.split == "valid"] == ["t02"]
    assert len(utterances) == 7


def test_copies_have_the_listed_lengths_and_scaled_alignments(tmp_path: Path) -> None:
    utterances = utterances_of(
        SpeedPerturbation(corpus=Tones(tmp_path, splits=("train", "valid"))), tmp_path / "prepare"
    )
    whole = audio.read(utterances["t00"].path)
    for factor in (0.9, 1.1):
        copy = utterances[f"t00-speed{factor}"]
        assert copy.speaker == f"s0-speed{factor}"
        assert Path(copy.path).is_relative_to(tmp_path / "prepare" / "speed")
        np.testing.assert_allclose(audio.read(copy.path), change_speed(whole, factor), atol=2**-15)
        length = scan(copy.path).num_samples
        for (name, start, end), (original, first, last) in zip(
            copy.phones or [], utterances["t00"].phones or [], strict=True
        ):
            assert name == original
            assert abs(start - first / factor) <= 0.5
            assert abs(end - last / factor) <= 0.5
            assert start <= end <= length


def test_a_copy_of_a_segment_holds_only_the_segment(tmp_path: Path) -> None:
    soundfile.write(
        tmp_path / "long.flac", 0.1 * np.random.default_rng(0).standard_normal(50_000), SAMPLE_RATE
    )

    class Segments:
        def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
            yield SourceUtterance(
                id="a", path=tmp_path / "long.flac", split="train", start=20_000, num_samples=9000
            )
            yield SourceUtterance(
                id="b", path=tmp_path / "long.flac", split="train", start=45_000, num_samples=9000
            )
            yield SourceUtterance(
                id="c", path=tmp_path / "long.flac", split="valid", start=0, num_samples=9000
            )

    utterances = utterances_of(SpeedPerturbation(corpus=Segments()), tmp_path / "prepare")
    assert set(utterances) == {"a", "a-speed0.9", "a-speed1.1", "b", "c"}, (
        "b ends behind its recording, which prepare will say"
    )
    copy = utterances["a-speed0.9"]
    assert (copy.start, copy.num_samples, copy.offset, copy.num_bytes) == (0, None, -1, -1)
    whole = audio.read(tmp_path / "long.flac", 20_000, 9000)
    np.testing.assert_allclose(
        audio.read(copy.path), np.clip(change_speed(whole, 0.9), -1, 1), atol=2**-15
    )


def test_unreadable_utterances_are_listed_without_copies(tmp_path: Path) -> None:
    corpus = Tones(tmp_path, splits=("train", "train", "valid"))
    list(corpus.utterances(tmp_path))
    content = (tmp_path / "t00.flac").read_bytes()
    (tmp_path / "t00.flac").write_bytes(content[: len(content) // 2])
    (tmp_path / "t01.flac").write_bytes(b"garbage")
    assert set(utterances_of(SpeedPerturbation(corpus=corpus), tmp_path / "prepare")) == {
        "t00",
        "t01",
        "t02",
    }


def test_utterances_with_a_fault_are_listed_without_copies(tmp_path: Path) -> None:
    class Faulty(Tones):
        def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
            for utterance in super().utterances(folder):
                fault = "no text" if utterance.id == "t01" else ""
                yield dataclasses.replace(utterance, fault=fault)

    source = SpeedPerturbation(corpus=Faulty(tmp_path, splits=("train",) * 2 + ("valid",)))
    found = utterances_of(source, tmp_path / "prepare")
    assert set(found) == {"t00", "t00-speed0.9", "t00-speed1.1", "t01", "t02"}


def test_copies_are_reused_until_their_recording_changes(tmp_path: Path) -> None:
    source = SpeedPerturbation(corpus=Tones(tmp_path, splits=("train", "valid")))
    folder = tmp_path / "prepare"
    first = utterances_of(source, folder)
    paths = [Path(utterance.path) for name, utterance in first.items() if "speed" in name]
    times = [path.stat().st_mtime_ns for path in paths]
    litter = paths[0].with_name(".abc.flac.123.tmp")
    litter.write_bytes(b"half")
    assert utterances_of(source, folder) == first
    assert [path.stat().st_mtime_ns for path in paths] == times
    assert not litter.exists()
    # Another recording under the same name, older than the copies.
    source_path = Path(first["t00"].path)
    soundfile.write(source_path, 0.25 * soundfile.read(source_path)[0], SAMPLE_RATE)
    os.utime(source_path, ns=(10**9, 10**9))
    second = utterances_of(source, folder)
    whole = audio.read(source_path)
    np.testing.assert_allclose(
        audio.read(second["t00-speed0.9"].path), change_speed(whole, 0.9), atol=2**-15
    )
    assert not any(path.exists() for path in paths), "stale copies are removed"


def test_an_id_that_comes_to_mean_another_segment_gets_new_copies(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Segment:
        start: int

        def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
            path = tmp_path / "long.flac"
            yield SourceUtterance(
                id="a", path=path, split="train", start=self.start, num_samples=9000
            )

    soundfile.write(
        tmp_path / "long.flac", 0.1 * np.random.default_rng(0).standard_normal(50_000), SAMPLE_RATE
    )
    for start in (0, 20_000):
        found = utterances_of(SpeedPerturbation(corpus=Segment(start)), tmp_path / "prepare")
        whole = audio.read(tmp_path / "long.flac", start, 9000)
        np.testing.assert_allclose(
            audio.read(found["a-speed0.9"].path),
            np.clip(change_speed(whole, 0.9), -1, 1),
            atol=2**-15,
        )


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    corpus = Tones(tmp_path)
    one, four = (
        utterances_of(SpeedPerturbation(corpus=corpus, workers=n), tmp_path / f"p{n}")
        for n in (1, 4)
    )
    assert list(one) == list(four)
    for name in one:
        assert Path(one[name].path).read_bytes() == Path(four[name].path).read_bytes()


def test_copies_may_have_their_original_speaker(tmp_path: Path) -> None:
    utterances = utterances_of(
        SpeedPerturbation(corpus=Tones(tmp_path, splits=("train", "valid")), speakers="keep"),
        tmp_path / "prepare",
    )
    assert {utterances[name].speaker for name in utterances if name.startswith("t00")} == {"s0"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"factors": [0.9, 1.1]},
            r"factors=\[0\.9, 1\.1\]: expected different speeds from 0\.5 to 2\.0, 1\.0 among them",
        ),
        ({"factors": [1.0, 3.0]}, "expected different speeds"),
        ({"factors": [1.0, 1.0]}, "expected different speeds"),
        ({"speakers": "kept"}, r"speakers='kept': expected suffix or keep"),
    ],
)
def test_invalid_values_are_refused(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SpeedPerturbation(corpus=Tones(tmp_path), **values)  # type: ignore[arg-type]


def test_rates() -> None:
    assert [rate_of(factor) for factor in (0.9, 1.1)] == [14_400, 17_600]
