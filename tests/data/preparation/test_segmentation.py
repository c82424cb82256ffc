"""Long recordings cut at their pauses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.config.schema import DataConfig, Recipe
from hubert_pretrain.data.config import Segmentation
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.preparation.corpus_card import describe
from hubert_pretrain.data.preparation.segmentation import cut
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import prepare

HOPS = 50  # in a second


def power(*stretches: tuple[float, float]) -> np.ndarray:
    """Power of hops: (seconds, dB) of each stretch."""
    parts = [np.full(round(length * HOPS), 10 ** (level / 10)) for length, level in stretches]
    return np.concatenate(parts).astype(np.float32)


def in_seconds(hops: np.ndarray, **settings: float) -> list[tuple[float, float]]:
    return [(a / HOPS, b / HOPS) for a, b in cut(hops, Segmentation(**settings))]


def test_pieces_are_joined_up_to_the_longest_and_lie_between_pauses() -> None:
    first = [(1, -60), (4, -10), (0.5, -60), (4, -12), (1, -60)]
    speech = power(*first, (4, -10), (0.2, -50), (3, -10))
    assert in_seconds(speech, max_seconds=10) == [(0.9, 9.6), (10.4, 17.7)]
    # The last region has no pause of 0.3 s: it is cut at its quietest hop.
    pieces = [(0.9, 5.1), (5.4, 9.6), (10.4, 14.5), (14.5, 17.7)]
    assert in_seconds(speech, max_seconds=6) == pieces
    pieces[2:] = [(10.4, 14.6), (14.6, 17.7)]
    assert in_seconds(speech, max_seconds=6, pause_seconds=0.2) == pieces
    assert in_seconds(speech, max_seconds=100, margin_seconds=0.02) == [(0.98, 17.7)]


def test_quiet_is_relative_and_short_pieces_are_left_out() -> None:
    speech = power((3, -50), (2, -80), (0.4, -50), (2, -80), (3, -70))
    assert in_seconds(speech, max_seconds=3.5, pause_db=15) == [(0.0, 3.1)]
    pieces = [(0.0, 3.1), (4.9, 5.5), (7.3, 10.4)]
    assert in_seconds(speech, max_seconds=3.5, pause_db=25, min_seconds=0.1) == pieces
    louder = 1e4 * speech
    assert in_seconds(louder, max_seconds=3.5, pause_db=25, min_seconds=0.1) == pieces
    # -80 dB are not quiet beside -50 dB.
    assert sum(b - a for a, b in in_seconds(speech, max_seconds=3.5)) == pytest.approx(10.4)


@pytest.mark.parametrize("seed", range(5))
def test_any_power_gives_pieces_in_order_and_none_too_long(seed: int) -> None:
    random = np.random.default_rng(seed)
    hops = (10 ** random.uniform(-8, 0, 5_000)).astype(np.float32)
    settings = Segmentation(max_seconds=5, min_seconds=0.5, pause_seconds=0.06)
    pieces = list(cut(hops, settings))
    bounds = [bound for piece in pieces for bound in piece]
    assert bounds == sorted(bounds)
    assert all(25 <= end - start <= 250 for start, end in pieces)
    assert list(cut(np.zeros(1_000, np.float32), settings)), "digital silence has no pause"


def test_prepare_cuts_long_recordings_and_keeps_transcribed_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "audio"
    root.mkdir()
    random = np.random.default_rng(0)
    loud = 0.1 * random.standard_normal((4, 3 * SAMPLE_RATE))
    quiet = 1e-5 * random.standard_normal(SAMPLE_RATE)
    speech = np.concatenate([part for one in loud for part in (one, quiet)])
    for name, rate in (("a.wav", SAMPLE_RATE), ("b.mp3", 44_100)):
        soundfile.write(root / name, speech, rate)
    soundfile.write(root / "short.wav", loud[0], SAMPLE_RATE)
    table = tmp_path / "list.csv"
    table.write_text("path,text\naudio/a.wav,\naudio/b.mp3,\naudio/short.wav,\n")
    corpus = {
        "_target_": "hubert_pretrain.corpora.manifest.ManifestFile",
        "path": str(table),
        "root": str(tmp_path),
    }

    def prepared(name: str) -> Corpus:
        data = DataConfig(
            corpus=corpus,
            root=str(tmp_path),
            workers=1,
            valid_fraction=0.0,
            recode_minutes=0.05,
            segmentation=Segmentation(max_seconds=3.5),
        )
        folder = tmp_path / name
        folder.mkdir()
        recipe = Recipe(name="test", work_dir=str(tmp_path), data=data)
        prepare.run(recipe, Workspace(tmp_path), "prepare", folder)
        return Corpus.open(folder)

    found = prepared("first")
    ids = [found.manifest[row].id for row in range(len(found.manifest))]
    assert ids[:4] == [f"audio/a-{number:04d}" for number in range(4)]
    assert "audio/short" in ids
    for row in range(4):
        utterance = found.manifest[row]
        assert abs(utterance.start - (4 * row * SAMPLE_RATE - 1_600 * (row > 0))) <= 320
        assert 3 * SAMPLE_RATE <= utterance.num_samples <= 3.3 * SAMPLE_RATE
        assert found.read(row).var() == pytest.approx(utterance.variance, rel=1e-3)
        assert utterance.variance > 0.008
    cuts = found.card["segmentation"]
    assert (cuts["recordings"], cuts["kept_whole"]) == (2, 0)
    assert cuts["utterances"] == len(ids) - 1
    assert 3 < cuts["seconds_left_out"] < 6
    assert "cut          2 long recordings" in describe(found.card)
    table.write_text("path,text\naudio/a.wav,words\naudio/b.mp3,\naudio/short.wav,\n")
    found = prepared("second")
    assert "audio/a" in [found.manifest[row].id for row in range(len(found.manifest))]
    assert found.card["segmentation"]["recordings"] == 1
