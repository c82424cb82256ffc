"""Augmentation: ratios in dB as asked for, only where it was asked for, and a pure function of
(seed, micro-batch, row).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hubert_pretrain.data import augment as noise
from hubert_pretrain.data.augment import Augmentation
from hubert_pretrain.data.config import SpeakerPerturbation
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.data.speaker_perturbation import change_voice, draw_voice
from hubert_pretrain.errors import DataError
from hubert_pretrain.seeds import generator

ROWS = [7, 3, 12, 5]
SIZE = 4000


def speech(seed: int = 0, rows: int = len(ROWS)) -> NDArray[np.float32]:
    """(B, S) of different loudness."""
    draw = np.random.default_rng(seed)
    return (draw.standard_normal((rows, SIZE)) * draw.uniform(0.01, 0.3, size=(rows, 1))).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long recording, a short one, one at 8 kHz; a text file that is no noise."""
    folder = tmp_path_factory.mktemp("noise")
    draw = np.random.default_rng(1)
    (folder / "deep").mkdir()
    for name, length, rate in (
        ("a.wav", 9000, 16000),
        ("deep/b.flac", 700, 16000),
        ("c.wav", 5000, 8000),
    ):
        soundfile.write(folder / name, 0.1 * draw.standard_normal(length), rate)
    (folder / "readme.txt").write_text("noise")
    return folder


def decibels(row: NDArray[np.float32], part: NDArray[np.float32]) -> float:
    return float(
        10 * np.log10(np.mean(row.astype(np.float64) ** 2) / np.mean(part.astype(np.float64) ** 2))
    )


@pytest.fixture
def everything(noises: Path) -> Callable[..., Augmentation]:
    def make(seed: int = 5) -> Augmentation:
        parts = {
            "mix_probability": 0.5,
            "mix_noise_share": 0.5,
            "noise_probability": 0.5,
            "gain_probability": 0.5,
            "voice_probability": 0.5,
        }
        return Augmentation(seed=seed, **parts).with_noise(noises)

    return make


def test_augmentation_is_a_pure_function_of_seed_micro_batch_and_row(
    everything: Callable[..., Augmentation],
) -> None:
    clean = speech()
    augment = everything()
    before = clean.copy()
    first, changed = augment(clean, index=9, rows=ROWS)
    assert np.array_equal(clean, before), (
        "the crops themselves are left as they are (they may lie in a cache)"
    )
    for other in range(3):
        augment(clean, index=other, rows=ROWS)
    assert np.array_equal(first, augment(clean, index=9, rows=ROWS)[0])
    assert np.array_equal(first, everything()(clean, index=9, rows=ROWS)[0])
    assert not np.array_equal(first, everything(seed=6)(clean, index=9, rows=ROWS)[0])
    assert not np.array_equal(first, augment(clean, index=10, rows=ROWS)[0])
    assert changed.tolist() == [not np.array_equal(a, b) for a, b in zip(first, clean, strict=True)]


def test_a_row_does_not_depend_on_the_augmentation_of_others(
    everything: Callable[..., Augmentation],
) -> None:
    """Mixed parts are clean: the last row of a batch is the same, whether or not the first row was
    augmented before it.
    """
    augment = Augmentation(seed=1, mix_probability=1.0)
    clean = speech()
    together, _ = augment(clean, index=0, rows=ROWS)
    parts = [together[b] - clean[b] for b in range(len(ROWS))]
    for b, part in enumerate(parts):
        inside = np.flatnonzero(part)
        stretch = part[inside[0] : inside[-1] + 1].astype(np.float64)
        best = max(
            _correlation(stretch, clean[other].astype(np.float64))
            for other in range(len(ROWS))
            if other != b
        )
        assert best > 0.9999


def _correlation(part: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    """Highest correlation of a part with any position of another row."""
    products = np.correlate(whole, part, mode="valid")
    squares = np.convolve(whole**2, np.ones(len(part)), mode="valid")
    return float(np.max(products / np.sqrt(np.maximum(squares, 1e-30) * (part @ part))))


@given(seed=st.integers(0, 10_000), low=st.floats(-10, 10), width=st.floats(0, 10))
def test_mixing_adds_at_most_half_of_the_length_at_the_configured_ratio(
    seed: int, low: float, width: float
) -> None:
    clean = speech(seed)
    augmented, changed = Augmentation(
        seed=seed, mix_probability=1.0, mix_ratio_db=(low, low + width)
    )(clean, index=3, rows=ROWS)
    assert changed.all()
    for b in range(len(ROWS)):
        added = (augmented[b] - clean[b]).astype(np.float64)
        inside = np.flatnonzero(added)
        assert inside[-1] - inside[0] < SIZE // 2
        # The scale of algorithm 1 is made of the energies of whole rows: only one of the other rows
        # can be the source.
        found = []
        for other in set(range(len(ROWS))) - {b}:
            stretch = added[inside[0] : inside[-1] + 1]
            source = clean[other].astype(np.float64)
            if len(stretch) > 50 and _correlation(stretch, source) > 0.999:
                at = int(np.argmax(np.correlate(source, stretch, mode="valid") ** 2))
                factor = np.sqrt(
                    (stretch @ stretch)
                    / (source[at : at + len(stretch)] @ source[at : at + len(stretch)])
                )
                found.append(decibels(clean[b], (factor * source).astype(np.float32)))
        if inside[-1] - inside[0] > 300:
            assert any(low - 0.2 <= ratio <= low + width + 0.2 for ratio in found), found


@given(seed=st.integers(0, 10_000), ratio=st.floats(-5, 30))
def test_noise_covers_the_row_at_the_configured_ratio(
    noises: Path, seed: int, ratio: float
) -> None:
    augment = Augmentation(
        seed=seed, noise_probability=1.0, noise_ratio_db=(ratio, ratio)
    ).with_noise(str(noises))
    clean = speech(seed)
    augmented, changed = augment(clean, index=0, rows=ROWS)
    assert changed.all()
    for b in range(len(ROWS)):
        assert decibels(clean[b], augmented[b] - clean[b]) == pytest.approx(ratio, abs=0.1)


def test_gain_is_in_decibels_and_of_whole_rows() -> None:
    clean = speech()
    augmented, _ = Augmentation(seed=0, gain_probability=1.0, gain_db=(-6.0, -6.0))(
        clean, index=0, rows=ROWS
    )
    np.testing.assert_allclose(augmented, clean * 10 ** (-6 / 20), rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["mix_probability", "noise_probability", "gain_probability", "voice_probability"]
)
def test_probabilities_are_shares_of_the_rows(noises: Path, name: str) -> None:
    augment = Augmentation(seed=2, noise=noise.open_noise(noises), **{name: 0.3})
    changed = np.concatenate([augment(speech(), index=index, rows=ROWS)[1] for index in range(150)])
    assert changed.mean() == pytest.approx(0.3, abs=0.06)


def test_one_kind_does_not_disturb_the_draws_of_another(noises: Path) -> None:
    source = noise.open_noise(noises)
    clean = speech()
    alone, _ = Augmentation(seed=2, mix_probability=1.0)(clean, index=0, rows=ROWS)
    louder, _ = Augmentation(seed=2, mix_probability=1.0, gain_probability=1.0, gain_db=(6.0, 6.0))(
        clean, index=0, rows=ROWS
    )
    np.testing.assert_allclose(louder, alone * 10 ** (6 / 20), rtol=1e-5)
    unused, _ = Augmentation(seed=2, mix_probability=1.0, noise=source)(clean, index=0, rows=ROWS)
    assert np.array_equal(unused, alone)


def test_another_voice_comes_first_and_leaves_the_other_rows() -> None:
    clean = speech()
    ranges = SpeakerPerturbation(formant_ratio=1.2, pitch_ratio=1.5, equaliser_db=3.0)
    some = Augmentation(seed=2, voice_probability=0.5, voice=ranges)
    augmented, changed = some(clean, index=1, rows=ROWS)
    assert changed.any()
    assert not changed.all()
    assert np.array_equal(augmented[~changed], clean[~changed])
    for b in np.flatnonzero(changed):
        random = generator("voice", 2, 1, ROWS[b])
        random.random()
        expected = change_voice(torch.from_numpy(clean[b]), draw_voice(ranges, random))
        np.testing.assert_array_equal(augmented[b], expected.numpy())
    louder = replace(some, gain_probability=1.0, gain_db=(6.0, 6.0))
    np.testing.assert_allclose(
        louder(clean, index=1, rows=ROWS)[0], augmented * 10 ** (6 / 20), rtol=1e-5
    )


def test_silence_and_a_single_row_stay_as_they_are(noises: Path) -> None:
    silent = np.zeros((2, SIZE), dtype=np.float32)
    augment = Augmentation(
        seed=0, mix_probability=1.0, noise_probability=1.0, noise=noise.open_noise(noises)
    )
    augmented, changed = augment(silent, index=0, rows=[0, 1])
    assert not augmented.any()
    assert not changed.any()
    alone = speech(rows=1)
    augmented, changed = Augmentation(seed=0, mix_probability=1.0)(alone, index=0, rows=[0])
    assert np.array_equal(augmented, alone)
    assert not changed.any()


def test_noise_that_no_setting_uses_is_not_opened() -> None:
    nothing = Augmentation(seed=0, mix_noise_share=1.0)
    assert not nothing.is_active
    assert nothing.with_noise("/nowhere") == nothing
    mixed = Augmentation(seed=0, mix_probability=1.0)
    assert mixed.is_active
    assert mixed.with_noise("/nowhere") == mixed
    with pytest.raises(DataError, match="no such folder of noise"):
        Augmentation(seed=0, noise_probability=0.1).with_noise("/nowhere")


def test_a_folder_of_noise(noises: Path) -> None:
    source = noise.open_noise(noises)
    assert len(source) == 3
    assert [source.num_samples(number) for number in range(3)] == [9000, 10000, 700]
    whole, _ = soundfile.read(noises / "a.wav", dtype="float32")
    assert np.array_equal(source.read(0, 100, 50), whole[100:150])
    for seed in range(20):
        assert noise.draw_noise(source, np.random.default_rng(seed), 2000).shape == (2000,)


def test_noise_in_a_prepared_corpus_is_the_same_noise(noises: Path, tmp_path: Path) -> None:
    plain = noise.open_noise(noises)
    names = ["a.wav", "c.wav", "deep/b.flac"]
    facts = [
        {"num_samples": plain.num_samples(i), "source_rate": 8000 if name == "c.wav" else 16000}
        for i, name in enumerate(names)
    ]
    rows = [
        Utterance(id=name, path=str(noises / name), **fact)
        for name, fact in zip(names, facts, strict=True)
    ]
    write_manifest(tmp_path / "manifest.arrow", rows)
    prepared = noise.open_noise(tmp_path)
    for seed in range(10):
        one, other = (
            noise.draw_noise(source, np.random.default_rng(seed), 3000)
            for source in (plain, prepared)
        )
        assert np.array_equal(one, other)


def test_missing_noise_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder of noise; set augment\.noise"):
        noise.open_noise(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no audio in this folder of noise, expected \.wav"):
        noise.open_noise(tmp_path)


def test_truncated_noise_is_named(tmp_path: Path) -> None:
    soundfile.write(
        tmp_path / "a.flac", 0.1 * np.random.default_rng(0).standard_normal(60_000), 16000
    )
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) // 3])
    with pytest.raises(DataError, match=r"a\.flac: "):
        noise.open_noise(tmp_path).read(0, 30_000, 20_000)
