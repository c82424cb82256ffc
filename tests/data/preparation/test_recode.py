"""Long recordings of formats without exact positions: written once as FLAC by `prepare`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.config.schema import DataConfig, Recipe
from hubert_pretrain.data import audio, decoding
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.preparation import recode
from hubert_pretrain.data.preparation.audio_stats import AudioFacts, Segment
from hubert_pretrain.data.preparation.corpus_card import describe
from hubert_pretrain.data.preparation.recode import Recoder
from hubert_pretrain.data.preparation.scan import Recording, scan_or_reason, scan_segments
from hubert_pretrain.data.storage import Location
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import prepare

SECONDS = 10


def recording(path: Path, rate: int = SAMPLE_RATE, channels: int = 1, **options: str) -> Path:
    samples = 0.1 * np.random.default_rng(0).standard_normal((SECONDS * rate, channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def prepared(folder: Path, root: Path, **values: object) -> Corpus:
    corpus = {"_target_": "hubert_pretrain.corpora.folder.Folder", "root": str(root)}
    settings = {"workers": 1, "valid_fraction": 0.0, "recode_minutes": 0.1, **values}
    data = DataConfig(corpus=corpus, root=str(root), **settings)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(name="test", work_dir=str(folder.parent), data=data)
    prepare.run(recipe, Workspace(folder.parent), "prepare", folder)
    return Corpus.open(folder)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of samples that the decoders gave."""
    counts: list[int] = []
    for kind in (decoding._Mp3, decoding._Libsndfile):
        original = kind.read

        def read(self: object, count: int, original: object = original) -> np.ndarray:
            block = original(self, count)
            counts.append(len(block))
            return block

        monkeypatch.setattr(kind, "read", read)
    return counts


def test_a_crop_of_a_long_recording_decodes_no_more_than_the_crop(
    tmp_path: Path, decoded: list[int]
) -> None:
    root = tmp_path / "audio"
    originals = {
        "a": recording(root / "a.mp3", 44_100),
        "b": recording(root / "b.ogg"),
        "c": recording(root / "c.wav", 44_100, subtype="PCM_16"),
        "d": recording(root / "d.opus", 48_000, format="OGG", subtype="OPUS"),
    }
    short = root / "e.mp3"
    soundfile.write(short, 0.1 * np.random.default_rng(0).standard_normal(48_000), SAMPLE_RATE)
    corpus = prepared(tmp_path / "prepare", root)
    assert corpus.card["recoded"]["recordings"] == 3
    assert "3 long recordings" in describe(corpus.card)
    assert set(corpus.card["source_rates"]) == {"16000", "44100", "48000"}
    assert len(list((tmp_path / "prepare/recoded").iterdir())) == 3
    for row in range(5):
        utterance = corpus.manifest[row]
        is_recoded = utterance.id in "abd"
        assert (Path(utterance.path).parent.name == "recoded") == is_recoded
        whole = audio.read(originals.get(utterance.id, short))
        assert utterance.num_samples == len(whole)
        np.testing.assert_allclose(corpus.read(row), whole, atol=2**-15 if is_recoded else 1e-6)
        decoded.clear()
        crop = corpus.read(row, 9 * SAMPLE_RATE if len(whole) > 99_000 else 0, 8_000)
        assert len(crop) == 8_000
        assert sum(decoded) <= 1.5 * utterance.source_rate


def test_a_rerun_makes_the_same_files_and_removes_others(tmp_path: Path) -> None:
    root = tmp_path / "audio"
    path = recording(root / "a.mp3")
    recording(root / "b.wav")
    for _ in range(2):
        corpus = prepared(tmp_path / "prepare", root)
        (flac,) = (tmp_path / "prepare/recoded").iterdir()
        content = flac.read_bytes()
        assert corpus.manifest[0].path == str(flac)
        (flac.with_name("left.flac")).write_bytes(b"")
    recording(path, 22_050)
    corpus = prepared(tmp_path / "prepare", root)
    (other,) = (tmp_path / "prepare/recoded").iterdir()
    assert other != flac
    assert other.read_bytes() != content
    assert len(corpus.read(0)) == SECONDS * SAMPLE_RATE
    corpus = prepared(tmp_path / "whole", root, recode_minutes=0.0)
    assert not (tmp_path / "whole/recoded").exists()
    assert corpus.manifest[0].path == str(path)
    corpus = prepared(tmp_path / "sharded", root, shards="flac")
    assert not (tmp_path / "sharded/recoded").exists()
    assert len(corpus.read(0)) == SECONDS * SAMPLE_RATE


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_segments_and_channels_of_a_recoded_recording(tmp_path: Path, rate: int) -> None:
    path = recording(tmp_path / "a.ogg", rate, channels=2)
    recoder = Recoder(tmp_path / "recoded", 1.0)
    segments = [Segment(0, 16_000, 1), Segment(100_000, 20_000), Segment(150_000, None, 0)]
    results = scan_segments(Recording(Location(str(path)), segments), recoder=recoder)
    (flac,) = recoder.folder.iterdir()
    assert soundfile.info(flac).channels == 2
    for (start, count, channel), facts in zip(segments, results, strict=True):
        assert isinstance(facts, AudioFacts)
        assert (facts.recoded, facts.source_rate, facts.channel) == (1, rate, channel)
        expected = audio.read(path, start, count, channel=channel)
        found = audio.read(flac, start, count, channel=channel)
        assert len(found) == facts.num_samples
        np.testing.assert_allclose(found, expected, atol=2**-15)
        assert facts.variance == pytest.approx(found.var(), rel=1e-3)


def test_no_file_is_made_of_a_truncated_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recording(tmp_path / "a.mp3")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    recoder = Recoder(tmp_path / "recoded", 1.0)
    (reason,) = scan_or_reason(Recording(Location(str(path))), recoder=recoder)
    assert str(reason).startswith("truncated or damaged")
    assert not list(recoder.folder.iterdir())
    path.write_bytes(whole)

    def full(waveform: np.ndarray) -> np.ndarray:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recode, "to_int16", full)
    with pytest.raises(ArtefactError, match=r"a\.mp3 cannot be written.*No space left"):
        scan_or_reason(Recording(Location(str(path))), recoder=recoder)
    assert not list(recoder.folder.iterdir())
