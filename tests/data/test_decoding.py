"""Files whose header does not tell their length: decoded to the end, or refused with a reason."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data import audio
from hubert_pretrain.data.decoding import LOWEST_RATE, open_stream
from hubert_pretrain.data.preparation.scan import scan
from hubert_pretrain.data.storage import ByteRange
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE


def tone(num_samples: int, rate: int = SAMPLE_RATE) -> np.ndarray:
    """A tone that becomes noise half-way, so that a variable bitrate varies."""
    time = np.arange(num_samples) / rate
    wave = 0.2 * np.sin(2 * np.pi * 300 * time)
    wave[num_samples // 2 :] += 0.2 * np.random.default_rng(0).standard_normal(
        num_samples - num_samples // 2
    )
    return wave.astype(np.float32)


def encoded(samples: np.ndarray, rate: int = SAMPLE_RATE, **options: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def mp3(samples: np.ndarray, rate: int = SAMPLE_RATE, mode: str = "VARIABLE") -> bytes:
    return encoded(samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.5)


def without_length(data: bytes) -> bytes:
    """The first frame is an ordinary silent one, no longer a Xing or Info header."""
    changed = data.replace(b"Xing", bytes(4), 1).replace(b"Info", bytes(4), 1)
    assert changed != data
    return changed


def agree(path: Path, expected: int | None = None) -> np.ndarray:
    """The waveform, once scan, read, length, crops, and the file in a shard agree on it."""
    whole = audio.read(path)
    facts = scan(path)
    assert facts.num_samples == len(whole) == audio.length(path)
    assert expected is None or len(whole) == expected
    assert np.array_equal(audio.decode("shard", ByteRange.of(path.read_bytes())), whole)
    for start, count in [(0, 400), (len(whole) // 2, 1_000), (len(whole) - 300, 500)]:
        crop = audio.read(path, start, count, source_rate=facts.source_rate)
        np.testing.assert_allclose(crop, whole[start : start + count], atol=1e-6)
    assert facts.variance == pytest.approx(whole.var(), rel=1e-3)
    return whole


def store(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_without_a_length_is_decoded_to_its_end(
    tmp_path: Path, rate: int, mode: str
) -> None:
    samples = tone(3 * rate, rate)
    stated = mp3(samples, rate, mode)
    agree(store(tmp_path / "stated.mp3", stated), 3 * SAMPLE_RATE)
    whole = agree(store(tmp_path / "a.mp3", without_length(stated)))
    added = len(whole) / SAMPLE_RATE - 3
    assert 0 <= added < 0.25, "the delay and padding of the encoder, and one silent frame"
    picture = b"ID3\x04\0\0" + bytes([0, 1, 0, 0]) + bytes(1 << 14)
    tagged = agree(store(tmp_path / "tagged.mp3", picture + without_length(stated)))
    assert np.array_equal(tagged, whole)


def test_an_mp3_inside_wav_is_decoded_to_its_end(tmp_path: Path) -> None:
    for rate in (16_000, 44_100):
        data = without_length(mp3(tone(3 * rate, rate), rate))
        fmt = struct.pack("<HHIIHHHHIHHH", 0x55, 1, rate, 8_000, 1, 0, 12, 1, 2, 1_152, 1, 0)
        chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt
        chunks += b"fact" + struct.pack("<II", 4, rate)  # a wrong guess
        chunks += b"data" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        wav = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
        inside = agree(store(tmp_path / "a.wav", wav))
        assert np.array_equal(inside, audio.read(store(tmp_path / "a.mp3", data)))


def test_joined_mp3_files_are_decoded_to_the_last(tmp_path: Path) -> None:
    first = mp3(tone(32_000))
    second = mp3(tone(48_000), mode="CONSTANT")
    whole = agree(store(tmp_path / "a.mp3", first + second))
    assert 5 <= len(whole) / SAMPLE_RATE < 5.4
    tag = b"TAG" + bytes(125) + b"APETAGEX" + bytes(9_000)
    agree(store(tmp_path / "tagged.mp3", first + tag), 32_000)
    other = mp3(tone(96_000, 48_000), 48_000)
    with pytest.raises(DataError, match=r"b\.mp3: joins MP3 streams of several sample rates"):
        scan(store(tmp_path / "b.mp3", first + other))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_joined_ogg_streams_are_decoded_to_the_last(tmp_path: Path, subtype: str) -> None:
    first, second = (
        encoded(tone(count), format="OGG", subtype=subtype) for count in (32_000, 24_000)
    )
    whole = agree(store(tmp_path / "a.ogg", first + second), 56_000)
    for part, found in [(first, whole[:32_000]), (second, whole[32_000:])]:
        assert np.array_equal(audio.decode("a", ByteRange.of(part)), found)
    with pytest.raises(DataError, match=r"b\.ogg: joins streams, not all of them whole"):
        scan(store(tmp_path / "b.ogg", first[: len(first) * 2 // 3] + second))
    stereo = encoded(np.stack([tone(9_000)] * 2, 1), format="OGG", subtype=subtype)
    with pytest.raises(DataError, match=r"c\.ogg: joins streams of several"):
        scan(store(tmp_path / "c.ogg", first + stereo))


def test_a_flac_without_a_length_is_decoded_to_its_end(tmp_path: Path) -> None:
    for rate in (16_000, 44_100):
        samples = (tone(3 * rate, rate) * 32_768).astype(np.int16)
        data = bytearray(encoded(samples, rate, format="FLAC"))
        packed = int.from_bytes(data[18:26], "big")
        stated = packed & (1 << 36) - 1
        assert stated == len(samples)
        whole = audio.decode("a", ByteRange.of(bytes(data)))
        for total in (0, stated + 1):
            data[18:26] = (packed - stated + total).to_bytes(8, "big")
            path = store(tmp_path / "a.flac", bytes(data))
            if total:
                assert scan(path).num_samples == len(audio.read(path)) == 3 * SAMPLE_RATE
            else:
                assert np.array_equal(agree(path, 3 * SAMPLE_RATE), whole)
            assert not len(audio.read(path, len(whole) + 10_000, 10))
    with pytest.raises(DataError, match=r"b\.flac: .*holds 2 joined streams"):
        scan(store(tmp_path / "b.flac", encoded(samples, format="FLAC") * 2))


def wav(stated: int, samples: np.ndarray, riff: int | None = None) -> bytes:
    data = audio.wav_header(len(samples)) + (samples * 32_768).astype("<i2").tobytes()
    riff = 36 + stated if riff is None else riff
    return data[:4] + struct.pack("<I", riff) + data[8:40] + struct.pack("<I", stated) + data[44:]


def test_sizes_of_wav_that_were_never_filled_in(tmp_path: Path) -> None:
    samples = tone(32_000)
    expected = audio.decode("a", ByteRange.of(wav(64_000, samples)))
    rf64 = bytearray(encoded((samples * 32_768).astype(np.int16), format="RF64"))
    at = rf64.index(b"ds64") + 8
    rf64[at : at + 24] = bytes(24)
    for name, data in {
        "none": wav(0, samples, riff=0),
        "header_too_many": wav(64_044, samples),
        "streamed": wav(0xFFFFFFFF, samples, riff=0xFFFFFFFF),
        "rf64": bytes(rf64),
    }.items():
        assert np.array_equal(agree(store(tmp_path / f"{name}.wav", data)), expected), name


def test_a_wav_header_that_covers_a_part_is_refused(tmp_path: Path) -> None:
    samples = tone(32_000)
    with pytest.raises(
        DataError, match=r"a\.wav: its header covers 4096 of 64000 bytes.*repair it"
    ):
        scan(store(tmp_path / "a.wav", wav(4_096, samples)))
    with pytest.raises(DataError, match=r"joined\.wav: not readable as audio"):
        scan(store(tmp_path / "joined.wav", wav(64_000, samples) * 2))
    listed = wav(64_000, samples) + b"LIST" + struct.pack("<I", 5_000) + bytes([7]) * 5_000
    assert scan(store(tmp_path / "listed.wav", listed)).num_samples == 32_000
    padded = wav(64_000, samples) + bytes(8_192)
    assert scan(store(tmp_path / "padded.wav", padded)).num_samples == 32_000


@pytest.mark.parametrize("format", ["RF64", "W64", "AIFF", "AU", "NIST", "WAVEX"])
def test_a_truncated_file_of_any_format_is_refused(tmp_path: Path, format: str) -> None:
    data = encoded(tone(32_000), format=format, subtype="PCM_16")
    assert scan(store(tmp_path / "a.wav", data)).num_samples == 32_000
    with pytest.raises(DataError, match=r"a\.wav: truncated or damaged, holds 1\d{4} "):
        scan(store(tmp_path / "a.wav", data[: len(data) // 2]))


ENCODINGS = [
    (format, subtype)
    for format in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "NIST", "OGG", "MP3")
    for subtype in soundfile.available_subtypes(format)
    if subtype not in ("MPEG_LAYER_I", "MPEG_LAYER_II")
    and (format, subtype) not in (("WAV", "MPEG_LAYER_III"), ("AIFF", "DWVW_12"))
]


@pytest.mark.parametrize(("format", "subtype"), ENCODINGS)
def test_read_reads_all_that_the_scan_accepts(tmp_path: Path, format: str, subtype: str) -> None:
    for rate in (8_000, 16_000):
        data = encoded(0.5 * tone(2 * rate, rate), rate, format=format, subtype=subtype)
        whole = agree(store(tmp_path / "a.wav", data))
        assert 2 * SAMPLE_RATE <= len(whole) < 2 * SAMPLE_RATE + 1_200, "blocks are filled up"


@pytest.mark.parametrize("rate", [1, 16, LOWEST_RATE - 1, 10**6])
def test_a_rate_that_cannot_be_is_refused(tmp_path: Path, rate: int) -> None:
    data = bytearray(wav(64_000, tone(32_000)))
    data[24:28] = struct.pack("<I", rate)
    path = store(tmp_path / "a.wav", bytes(data))
    for use in (scan, audio.read):
        with pytest.raises(DataError, match=rf"a\.wav: its header says {rate} Hz .*expected 2000"):
            use(path)


def test_a_failure_to_fetch_is_not_the_end_of_a_file() -> None:
    data = wav(200_000, tone(100_000))

    def read(start: int, length: int) -> bytes:
        if start > 60_000:
            raise DataError("u.wav: cannot be fetched")
        return data[start : start + length]

    with open_stream("u.wav", ByteRange(len(data), read)) as stream:
        assert len(stream.read(1_000)) == 1_000
        with pytest.raises(DataError, match="cannot be fetched"):
            stream.read(99_000)


@pytest.mark.parametrize("beginning", ["zeros", "middle", "text"])
def test_an_mp3_that_begins_with_other_bytes_is_decoded_to_its_end(
    tmp_path: Path, beginning: str
) -> None:
    whole = without_length(mp3(tone(4 * SAMPLE_RATE)))
    cut = len(whole) // 8
    data = {
        "zeros": bytes(3_000) + whole,
        "middle": whole[cut:],
        "text": b"HTTP/1.0 200 OK" + whole,
    }
    path = store(tmp_path / "a.mp3", data[beginning])
    found = audio.read(path)
    assert scan(path).num_samples == len(found)
    expected = audio.decode("whole", ByteRange.of(whole))
    lost = len(expected) - len(found)
    assert 0 <= lost < (SAMPLE_RATE if beginning == "middle" else 1_000)
    np.testing.assert_allclose(found[8_000:], expected[lost + 8_000 :], atol=1e-3)
