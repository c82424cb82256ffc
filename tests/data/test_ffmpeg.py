"""Audio of FFmpeg's formats: scan, whole and crop agree, and a file that was cut is noticed."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.data import audio, ffmpeg
from hubert_pretrain.data.audio_files import (
    PassedOver,
    all_audio_below,
    audio_below,
    audio_in,
)
from hubert_pretrain.data.preparation.scan import scan
from hubert_pretrain.errors import DataError

av = pytest.importorskip("av")


def write_ffmpeg(path: Path, codec: str, container: str, rate: int, seconds: float = 4.0) -> Path:
    """A tone of 440 Hz in a format that libsndfile does not write."""
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.layout = "mono"
        resampler = av.AudioResampler(stream.codec_context.codec.audio_formats[0], "mono", rate)
        for start in range(0, len(tone), 1024):
            block = tone[None, start : start + 1024].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate = rate
            frame.pts = start
            frame.time_base = Fraction(1, rate)
            for each in resampler.resample(frame):
                output.mux(stream.encode(each))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "container", "rate", "longer"),
    [
        ("a.m4a", "aac", "ipod", 44_100, 1_024),
        ("a.aac", "aac", "adts", 16_000, 2_048),
        ("a.webm", "libopus", "webm", 48_000, 320),
        ("a.wv", "wavpack", "wv", 16_000, 0),
        ("a.tta", "tta", "tta", 8_000, 0),
    ],
)
def test_what_the_scan_accepts_is_read_in_whole_and_in_part(
    tmp_path: Path, name: str, codec: str, container: str, rate: int, longer: int
) -> None:
    path = write_ffmpeg(tmp_path / name, codec, container, rate)
    facts = scan(path)
    whole = audio.read(path)
    assert len(whole) == facts.num_samples
    # Encoders pad to whole packets.
    assert 64_000 <= len(whole) <= 64_000 + longer
    assert (facts.source_rate, facts.channels) == (rate, 1)
    assert np.abs(whole[16_000:48_000]).max() == pytest.approx(0.3, abs=0.05)
    crop = audio.read(path, 20_000, 3_000, source_rate=rate)
    np.testing.assert_allclose(crop, whole[20_000:23_000], atol=1e-6)
    data = path.read_bytes()
    (tmp_path / "shard").write_bytes(b"before" + data)
    inside = audio.read(tmp_path / "shard", offset=6, num_bytes=len(data))
    np.testing.assert_array_equal(inside, whole)


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [("a.webm", "libopus", "webm"), ("a.tta", "tta", "tta"), ("a.m4a", "aac", "ipod")],
)
def test_a_file_that_was_cut_is_refused(
    tmp_path: Path, name: str, codec: str, container: str
) -> None:
    path = write_ffmpeg(tmp_path / name, codec, container, 48_000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for read in (scan, audio.read):
        with pytest.raises(
            DataError, match=r"truncated or damaged|cannot be decoded|not readable as"
        ):
            read(path)


def test_without_pyav_the_files_are_counted_and_an_error_says_what_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_ffmpeg(tmp_path / "a.m4a", "aac", "ipod", 16_000)
    assert list(audio_below(tmp_path, PassedOver())) == [path]
    monkeypatch.setattr(ffmpeg, "is_installed", lambda: False)
    passed_over = PassedOver()
    assert list(audio_below(tmp_path, passed_over)) == []
    assert passed_over.kinds == {".m4a": 1}
    for list_files in (audio_in, all_audio_below):
        with pytest.warns(UserWarning, match=r"are audio, which FFmpeg decodes: pip install"):
            assert list_files(tmp_path) == []
    for read in (scan, audio.read):
        with pytest.raises(DataError, match=r"a\.m4a: is audio .*pip install av"):
            read(path)


def test_a_list_that_names_other_files_is_not_opened(tmp_path: Path) -> None:
    """FFmpeg would open the addresses in a playlist."""
    (tmp_path / "a.m4a").write_text("#EXTM3U\n#EXTINF:4,\nhttp://127.0.0.1:9/a.aac\n")
    with pytest.raises(DataError, match=r"not readable as audio"):
        audio.read(tmp_path / "a.m4a")
