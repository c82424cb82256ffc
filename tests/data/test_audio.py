import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.data import audio
from hubert_pretrain.data.preparation.scan import scan
from hubert_pretrain.data.storage import ByteRange
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE

RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000]


def noise(num_samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((num_samples, channels))).astype(
        np.float32
    )


def write(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


@given(num_samples=st.integers(1, 10**9), rate=st.integers(1_000, 200_000))
def test_resampled_length_rounds_half_up(num_samples: int, rate: int) -> None:
    length = audio.resampled_length(num_samples, rate)
    assert -rate < 2 * (num_samples * SAMPLE_RATE - length * rate) + 1 <= rate + 1
    assert audio.resampled_length(num_samples, SAMPLE_RATE) == num_samples


@pytest.mark.parametrize("rate", RATES)
def test_resampled_length_is_what_soxr_gives(rate: int) -> None:
    for num_samples in [*range(1, 120), 12_345, 100_001]:
        assert len(
            soxr.resample(np.zeros(num_samples, np.float32), rate, SAMPLE_RATE)
        ) == audio.resampled_length(num_samples, rate)


@pytest.mark.parametrize(
    ("suffix", "rate"),
    [(suffix, rate) for suffix in ("wav", "flac", "ogg", "mp3") for rate in RATES]
    + [("opus", rate) for rate in (8_000, 16_000, 48_000)],
)
def test_scan_gives_the_length_of_read_and_crops_are_slices(
    tmp_path: Path, suffix: str, rate: int
) -> None:
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    path = write(tmp_path / f"a.{suffix}", noise(2 * rate + 77, channels=2), rate, **options)
    whole = audio.read(path)
    facts = scan(path)
    assert (len(whole), rate, 2) == (facts.num_samples, facts.source_rate, facts.channels)
    assert whole.dtype == np.float32
    assert facts.mean == pytest.approx(whole.mean(dtype=np.float64), abs=1e-7)
    assert facts.variance == pytest.approx(whole.var(dtype=np.float64), rel=1e-5)
    end = len(whole)
    for start, count in [
        (0, 400),
        (1, 5_000),
        (16_000, 12_345),
        (end - 400, 400),
        (end - 100, 300),
        (end + 5, 3),
        (0, end),
    ]:
        crop = audio.read(path, start, count, source_rate=rate)
        assert len(crop) == len(whole[start : start + count])
        np.testing.assert_allclose(crop, whole[start : start + count], atol=1e-6)
        out = np.full(count + 2, 7, dtype=np.float32)
        filled = audio.read(path, start, count, source_rate=rate, out=out[1:-1])
        assert np.array_equal(filled, crop)
        assert np.array_equal(out, [7, *crop, *[7] * (count - len(crop)), 7]), (
            "what was not read is left as it was"
        )
    np.testing.assert_allclose(audio.read(path, 777), whole[777:], atol=1e-6)


def test_16_khz_files_are_read_to_the_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 20_000).astype(np.int16)
    for suffix in ("wav", "flac"):
        path = write(tmp_path / f"a.{suffix}", samples)
        assert np.array_equal(
            audio.read(path, 3, 5_000), samples[3:5_003].astype(np.float32) / 32768
        )


@given(
    seed=st.integers(0, 2**32),
    num_samples=st.integers(1, 20_000),
    share=st.tuples(st.floats(0, 1.1), st.floats(0, 1.1)),
    loudness=st.sampled_from([0, 1, 300, 32_767]),
)
def test_the_fast_decoders_give_the_samples_of_libsndfile(
    seed: int, num_samples: int, share: tuple[float, float], loudness: int
) -> None:
    samples = (
        np.random.default_rng(seed)
        .integers(-loudness - 1, loudness + 1, num_samples)
        .astype(np.int16)
    )
    start = int(share[0] * num_samples)
    count = int(share[1] * num_samples)
    for format in ("WAV", "FLAC"):
        file = io.BytesIO()
        soundfile.write(file, samples, SAMPLE_RATE, format=format, subtype="PCM_16")
        expected = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")[0]
        part = ByteRange.of(file.getvalue())
        assert np.array_equal(audio.decode("a", part), expected)
        assert np.array_equal(
            audio.decode("a", part, start, count), expected[start : start + count]
        )
        assert np.array_equal(audio.decode("a", part, start), expected[start:])


def test_other_headers_are_decoded_by_libsndfile(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-999, 999, (4_000, 2)).astype(np.int16)
    for name, values, rate, options in [
        ("stereo.wav", samples, SAMPLE_RATE, {}),
        ("stereo.flac", samples, SAMPLE_RATE, {}),
        ("deep.wav", samples[:, 0], SAMPLE_RATE, {"subtype": "PCM_24"}),
        ("deep.flac", samples[:, 0], SAMPLE_RATE, {"subtype": "PCM_24"}),
        ("wide.wav", samples[:, 0], SAMPLE_RATE, {"format": "WAVEX"}),
        ("law.wav", samples[:, 0], SAMPLE_RATE, {"subtype": "ULAW"}),
        ("aiff.wav", samples[:, 0], SAMPLE_RATE, {"format": "AIFF"}),
    ]:
        path = write(tmp_path / name, values, rate, **options)
        expected = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(
            axis=1, dtype=np.float32
        )
        assert np.array_equal(audio.read(path), expected)
        assert np.array_equal(audio.read(path, 100, 3_500), expected[100:3_600])


def test_chunks_before_and_after_the_samples_are_not_read_as_samples(tmp_path: Path) -> None:
    samples = np.arange(1_000, dtype=np.int16)
    plain = audio.wav_header(1_000) + samples.tobytes()
    (tmp_path / "after.wav").write_bytes(plain + b"LIST" + (4).to_bytes(4, "little") + b"abcd")
    (tmp_path / "before.wav").write_bytes(
        plain[:36] + b"LIST" + (4).to_bytes(4, "little") + b"abcd" + plain[36:]
    )
    for name in ("after", "before"):
        assert np.array_equal(audio.read(tmp_path / f"{name}.wav") * 2**15, samples)


def test_a_damaged_flac_is_never_shifted(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-9_000, 9_000, 60_000).astype(np.int16)
    path = write(tmp_path / "a.flac", samples)
    content = path.read_bytes()
    for place in (len(content) // 3, len(content) // 2, len(content) - 50):
        for damage in (bytes([content[place] ^ 255]), b"\0" * 2_000):
            damaged = content[:place] + damage + content[place + len(damage) :]
            path.write_bytes(damaged[: len(content)])
            for start, count in [(0, 60_000), (1_000, 58_000), (59_000, 1_000)]:
                crop = crop_or_reason(path, start, count)
                if isinstance(crop, str):
                    assert "a.flac: cannot be decoded" in crop
                else:
                    assert np.array_equal(
                        crop, samples[start : start + count] / np.float32(2**15)
                    ), "a crop before the damage"
                    assert count < 58_000


def test_a_header_with_a_huge_length_allocates_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", noise(20_000))
    content = bytearray(path.read_bytes())
    content[21] |= 15  # the 36-bit number of samples: nearly 2**36
    path.write_bytes(content)
    crop = crop_or_reason(path, 0, 10_000)
    assert "a.flac" in crop if isinstance(crop, str) else len(crop) == 10_000


def crop_or_reason(path: Path, start: int, count: int) -> np.ndarray | str:
    try:
        return audio.read(path, start, count)
    except DataError as error:
        return str(error)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left_right = noise(1_000, channels=2)
    path = write(tmp_path / "a.wav", left_right, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(path), left_right.mean(axis=1), atol=1e-7)


def test_resampling_keeps_a_tone(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32) * 0.5
    waveform = audio.read(write(tmp_path / "a.wav", tone, 44_100, subtype="FLOAT"))
    expected = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE) * 0.5
    np.testing.assert_allclose(waveform[500:-500], expected[500:-500], atol=1e-4)


def test_missing_garbage_and_changed_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.wav: no such file"):
        audio.read(tmp_path / "none.wav")
    garbage = tmp_path / "garbage.flac"
    garbage.write_bytes(b"fLaC" + bytes(range(256)) * 8)
    with pytest.raises(DataError, match=r"garbage\.flac: (not readable|cannot be decoded)"):
        audio.read(garbage)
    path = write(tmp_path / "a.wav", noise(9_000), 8_000)
    with pytest.raises(DataError, match="has 8000 Hz, the manifest says 16000"):
        audio.read(path, source_rate=16_000)
    whole = path.with_suffix(".flac")
    write(whole, noise(90_000))
    whole.write_bytes(whole.read_bytes()[:60_000])
    with pytest.raises(DataError, match=r"a\.flac: cannot be decoded"):
        audio.read(whole)


def test_real_flac_speech(shared: Path) -> None:
    for path in sorted((shared / "data/librispeech").rglob("*.flac"))[::20]:
        expected = soundfile.read(path, dtype="float32")[0]
        assert np.array_equal(audio.read(path), expected)
        assert np.array_equal(audio.read(path, 999, len(expected) - 2_000), expected[999:-1_001])
        assert np.array_equal(audio.read(path, 5_000, 2_000), expected[5_000:7_000])


def test_real_telephone_speech(shared: Path) -> None:
    for path in sorted((shared / "data/fsdd").glob("*_0.wav"))[:10]:
        whole = audio.read(path)
        assert len(whole) == 2 * soundfile.info(path).frames == scan(path).num_samples
        np.testing.assert_allclose(audio.read(path, 320, 1_000), whole[320:1_320], atol=1e-6)


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (8000, 2), (44100, 1), (48000, 2)])
def test_blocks_are_the_recording_read_whole(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "speech.wav"
    noise = np.random.default_rng(0).normal(0, 0.1, (rate * 7 + 123, channels))
    soundfile.write(path, noise, rate, subtype="FLOAT")
    found = list(audio.blocks(path))
    whole = audio.read(path)
    assert len(np.concatenate(found)) == len(whole) == audio.length(path)
    np.testing.assert_allclose(np.concatenate(found), whole, atol=2e-6)


def test_blocks_of_a_long_recording_are_short(tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.zeros(8000 * 200, dtype=np.float32), 8000, subtype="PCM_16")
    found = list(audio.blocks(path))
    assert max(map(len, found)) < 16000 * 70
    assert sum(map(len, found)) == 16000 * 200
