"""Every row about a corpus: well, and made to fail."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.config.schema import PretrainConfig
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE, FrameGrid
from hubert_pretrain.preflight import corpus as about
from hubert_pretrain.preflight.report import CheckResult

Make = Callable[..., Corpus]
CONFIG = PretrainConfig(
    steps=1,
    batch_seconds=4.0,
    micro_batch_seconds=2.0,
    max_crop_seconds=1.0,
    min_seconds=0.5,
    max_shapes=2,
)


def text_of(row: CheckResult) -> str:
    return f"{row.state}: {row.found} | {row.fix}"


def test_a_sound_corpus_is_ok(make_corpus: Make) -> None:
    rows = about.check(
        make_corpus(), grid=MODEL_GRID, sample=200, everything=False, seed=1, workers=2
    )
    assert [(row.name, row.state) for row in rows] == [
        (name, "ok") for name in ("utterances", "sample rate", "alignments", "audio", "frames")
    ]
    found = {row.name: row.found for row in rows}
    assert found["utterances"] == "12 in train 9, valid 2, test 1; 2 more in quarantine"
    assert found["sample rate"] == "12 at 16000 Hz; one channel"
    assert found["alignments"] == "12 of 12 utterances, 2 phones"
    assert found["audio"] == "all 12 read: whole, and as the manifest says"
    assert "49 to 53 per utterance, 50 a second" in found["frames"]


def test_before_prepare_everything_waits() -> None:
    rows = about.check(None, grid=MODEL_GRID, sample=200, everything=False, seed=1, workers=1)
    assert {(row.state, row.found) for row in rows} == {("skipped", "after prepare")}
    assert len(rows) == 5


def test_root(tmp_path: Path) -> None:
    assert (
        about.root(None).state
        == about.root(str(tmp_path)).state
        == about.root("s3://bucket/speech").state
        == "ok"
    )
    assert (
        text_of(about.root(f"{tmp_path}/nowhere"))
        == f"error: {tmp_path}/nowhere: no such folder | set data.root to where the corpus lies"
    )


@pytest.mark.parametrize(
    ("splits", "missing"), [(("train", "test"), "valid"), (("valid", "test"), "train")]
)
def test_missing_splits(make_corpus: Make, splits: tuple[str, ...], missing: str) -> None:
    row = about.utterances(make_corpus(splits=splits))
    assert row.state == "error"
    assert f"none in '{missing}'" in row.found
    assert ("data.valid_fraction" in row.fix) == (missing == "valid")


def test_the_same_audio_in_two_splits(make_corpus: Make) -> None:
    row = about.utterances(make_corpus(card={"duplicates": {"across_splits": 4}}))
    assert row.state == "warning"
    assert "4 have the same audio in another split" in row.found
    assert "duplicates.jsonl lists them; data.duplicates=drop" in row.fix


def test_ids_that_are_not_unique(make_corpus: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    corpus = make_corpus()
    assert about.utterances(corpus, every_id=True).state == "ok"
    monkeypatch.setattr(type(corpus.manifest), "column", lambda self, name: pa.array(["same"] * 12))
    row = about.utterances(corpus, every_id=True)
    assert "only 1 different ids" in text_of(row)
    assert row.state == "error"


def test_a_lost_card_is_a_row_and_no_traceback(make_corpus: Make, tmp_path: Path) -> None:
    corpus = make_corpus()
    (tmp_path / "prepare" / "card.json").unlink()
    rows = about.check(corpus, grid=MODEL_GRID, sample=1, everything=False, seed=1, workers=1)
    broken = {row.name: text_of(row) for row in rows if row.state == "error"}
    assert set(broken) == {"utterances", "sample rate"}
    assert broken["utterances"].endswith(
        "card.json: missing or damaged | redo=prepare makes it again"
    )


def test_low_rates_and_channels(make_corpus: Make) -> None:
    row = about.rates(make_corpus(rate=8000, card={"channels": {"1": 9, "2": 3}}))
    assert row.state == "warning"
    assert row.found == "12 at 8000 Hz; 3 with several channels, one is taken or made"
    assert "nothing above 4000 Hz is in them" in row.fix


def test_alignments_of_other_audio(make_corpus: Make, tmp_path: Path) -> None:
    row = about.alignments(make_corpus(phones_end=16_050))
    assert row.state == "error"
    assert "that of 'u00' ends at sample 16050, its audio at 16000" in row.found
    write_alignments(tmp_path / "prepare" / "alignments.arrow", [(99, [("a", 0, 10)])])
    row = about.alignments(Corpus.open(tmp_path / "prepare"))
    assert "of row 99, which the manifest has not" in row.found
    (tmp_path / "prepare" / "alignments.arrow").unlink()
    assert about.alignments(Corpus.open(tmp_path / "prepare")).state == "ok"


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damage(path: Path) -> None:
    path.write_bytes(b"no audio at all")


def resample(path: Path) -> None:
    waveform, _ = soundfile.read(path)
    soundfile.write(path, waveform, 8000)


def poison(path: Path) -> None:
    waveform, _ = soundfile.read(path)
    waveform[17] = np.nan
    soundfile.write(path, waveform, SAMPLE_RATE, subtype="FLOAT")


def exchange(path: Path) -> None:
    length = soundfile.info(path).frames
    soundfile.write(
        path, 0.5 * np.random.default_rng(9).standard_normal(length).clip(-1, 1), SAMPLE_RATE
    )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (Path.unlink, "no such file"),
        (damage, "not readable as audio"),
        (truncate, "the manifest promises 16300"),
        (resample, "has 8000 Hz, the manifest says 16000"),
        (poison, "NaN or infinity among its samples"),
        (exchange, "other audio of the same length"),
    ],
)
def test_bad_audio_is_found_and_named(
    make_corpus: Make, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    corpus = make_corpus()
    harm(tmp_path / "audio" / "u03.wav")
    row = about.audio(corpus, np.arange(12), 2)
    assert row.state == "error"
    assert "all 12 read: 1 bad, the first: " in row.found
    assert "u03.wav" in row.found
    assert message in row.found, row.found
    assert len(row.details) == 1
    assert "redo=prepare" in row.fix


def test_a_sample_is_seeded_and_all_is_all(make_corpus: Make) -> None:
    corpus = make_corpus()
    first, again, other = (
        about.choose(corpus, sample=4, everything=False, seed=seed) for seed in (1, 1, 2)
    )
    assert len(set(first.tolist())) == 4
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    for chosen in (
        about.choose(corpus, sample=4, everything=True, seed=1),
        about.choose(corpus, sample=99, everything=False, seed=1),
    ):
        assert chosen.tolist() == list(range(12))
    assert about.audio(corpus, first, 1).found.startswith("a sample of 4 read")


def test_frames(make_corpus: Make) -> None:
    corpus = make_corpus()
    row = about.frames(corpus, FrameGrid(window=16_050, hop=320))
    assert row.state == "error"
    assert "'u00' is 1.000 s long" in row.found
    row = about.frames(corpus, FrameGrid(window=400, hop=640))
    assert (row.state, "25 a second" in row.found) == ("ok", True)


def test_crops(make_corpus: Make) -> None:
    corpus = make_corpus()

    def crops(**changes: float) -> CheckResult:
        config = dataclasses.replace(CONFIG, **changes)
        return about.crops(corpus, "crops it1", config, grid=MODEL_GRID, seed=1)

    row = crops()
    assert row.state == "ok"
    assert "0 of 9 are too short" in row.found
    assert float(re.search(r"use ([\d.]+)% of the audio", row.found)[1]) > 50
    row = crops(min_seconds=0.25, max_crop_seconds=0.3)
    assert row.state == "warning"
    assert float(re.search(r"use ([\d.]+)% of the audio", row.found)[1]) < 30
    assert "cut long ones into segments" in row.fix
    row = crops(min_seconds=1.02, micro_batch_seconds=1.1)
    assert (row.state, row.fix) == ("warning", "lower iterations.NAME.pretrain.min_seconds=1.02")
    assert "4 of 9 are too short" in row.found
    row = crops(micro_batch_seconds=100.0)
    assert row.state == "error"
    assert "does not fill one micro-batch of 100.0 s" in row.found
    assert row.fix.startswith("lower iterations.NAME.pretrain.micro_batch_seconds")


def test_noise(tmp_path: Path, make_corpus: Make) -> None:
    make_corpus()
    assert about.noise([]).found == "none is added"
    assert "12 recordings in" in about.noise([str(tmp_path / "audio")]).found
    row = about.noise([str(tmp_path / "nowhere")])
    assert (row.state, "no such folder of noise" in row.found) == ("error", True)
    damage(tmp_path / "audio" / "u00.wav")
    assert "u00.wav: not readable as audio" in about.noise([str(tmp_path / "audio")]).found


def test_a_long_utterance_is_checked_a_part_at_a_time(
    make_corpus: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus()
    assert about.audio_fault(corpus, 0) == ""
    lengths = []
    original = Corpus.read

    def read(self: Corpus, *place: int) -> np.ndarray:
        waveform = original(self, *place)
        lengths.append(len(waveform))
        return waveform

    monkeypatch.setattr(Corpus, "read", read)
    monkeypatch.setattr(about, "_SAMPLES_AT_ONCE", 1_000)
    assert about.audio_fault(corpus, 0) == ""
    assert sum(lengths) == corpus.manifest[0].num_samples
    assert max(lengths) <= 1_000


def test_mixes_far_below_their_channels_are_a_warning(make_corpus: Make) -> None:
    row = about.rates(make_corpus(card={"mixes": {"softer": 2, "cancelled": 1}}))
    assert row.state == "warning"
    assert "the mix of 3 is 5 dB or more below their loudest channel" in row.found
    assert "data.channel=loudest" in row.fix
