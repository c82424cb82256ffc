import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.audio import LOUDEST, MIX, read
from hubert_pretrain.data.preparation.audio_stats import AudioFacts, Segment
from hubert_pretrain.data.preparation.scan import (
    Recording,
    scan,
    scan_all,
    scan_or_reason,
    scan_segments,
)
from hubert_pretrain.data.storage import Location
from hubert_pretrain.errors import DataError


def speech(num_samples: int = 32_000, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def write(path: Path, samples: np.ndarray, rate: int = 16_000, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "opus"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file_is_found(tmp_path: Path, suffix: str, share: float) -> None:
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    path = cut(write(tmp_path / f"a.{suffix}", speech(), **options), share)
    with pytest.raises(
        DataError, match=rf"a\.{suffix}: (truncated|cannot be decoded|not readable)"
    ) as error:
        scan(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "opus"])
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 4096, b"not audio at all\n" * 99], ids=["empty", "zeros", "text"]
)
def test_a_file_that_is_not_audio_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.{suffix}: not readable as audio"):
        scan(path)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 378\n")
    with pytest.raises(DataError, match=r"a\.wav: not readable as audio: .*`git lfs pull`"):
        scan(path)


def test_a_flac_with_a_hole_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", speech())
    content = bytearray(path.read_bytes())
    content[20_000:30_000] = bytes(10_000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.flac: cannot be decoded after"):
        scan(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused(tmp_path: Path, bad: float) -> None:
    samples = speech()
    samples[5_000] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        scan(write(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_sixteen_bit_numbers_in_a_float_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"samples up to .*expected \[-1, 1\]"):
        scan(write(tmp_path / "a.wav", speech() * 32_768, subtype="FLOAT"))


def test_silence_throughout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sound"):
        scan(write(tmp_path / "a.wav", np.zeros(16_000)))


@pytest.mark.parametrize(
    ("num_samples", "rate", "good"),
    [(399, 16_000, 0), (400, 16_000, 1), (199, 8_000, 0), (200, 8_000, 1)],
)
def test_one_window_is_the_shortest_accepted_file(
    tmp_path: Path, num_samples: int, rate: int, good: bool
) -> None:
    path = write(tmp_path / "a.wav", speech(num_samples), rate)
    if good:
        assert scan(path).num_samples == 400
    else:
        with pytest.raises(
            DataError, match=r"39\d samples at 16000 Hz, shorter than one model frame \(400\)"
        ):
            scan(path)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 samples at 16000 Hz, shorter"):
        scan(write(tmp_path / "a.wav", np.zeros(0)))


def test_a_wav_without_a_stated_length_is_accepted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speech())
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert scan(path).num_samples == 32_000


def test_statistics(tmp_path: Path) -> None:
    samples = np.concatenate([speech(16_000), np.zeros(16_000, np.float32)])
    samples[:100] = 1.0
    facts = scan(write(tmp_path / "a.wav", samples, subtype="FLOAT"))
    assert facts.silence == pytest.approx(0.5, abs=0.01)
    assert facts.clipped == pytest.approx(100 / 32_000)
    assert facts.peak == 1.0
    assert facts.mean == pytest.approx(samples.mean(dtype=np.float64), rel=1e-5)
    assert facts.variance == pytest.approx(samples.var(dtype=np.float64), rel=1e-5)


def test_a_long_file_is_measured_in_blocks_as_in_one(tmp_path: Path) -> None:
    samples = speech(1 << 19)
    facts = scan(write(tmp_path / "a.wav", samples, 22_050, subtype="FLOAT"))
    assert facts.variance == pytest.approx(
        samples.var(dtype=np.float64), rel=0.5
    )  # resampling takes the upper band
    assert facts.silence == 0.0
    assert facts.num_samples == round((1 << 19) * 16_000 / 22_050)


def test_content_hashes_the_samples_not_the_file(tmp_path: Path) -> None:
    samples = (speech() * 32_768).astype(np.int16)
    wav = scan(write(tmp_path / "a.wav", samples))
    flac = scan(write(tmp_path / "b.flac", samples))
    samples[-1] += 1
    other = scan(write(tmp_path / "c.wav", samples))
    assert wav.content == flac.content != other.content


@pytest.mark.parametrize("rate", [16_000, 8_000, 22_050])
def test_segments_have_the_facts_of_their_own_audio(tmp_path: Path, rate: int) -> None:
    samples = speech(40 * rate, seed=3)
    samples[: 10 * rate] *= 0.2
    path = str(write(tmp_path / "long.wav", samples, rate, subtype="FLOAT"))
    segments = [
        (0, None),
        (16_000, 32_000),
        (40_000, 400),
        (17_000, 400_000),
        (600_000, None),
        (16_000, 32_000),
    ]
    facts = scan_segments(Recording(Location(path), segments))
    for (start, num_samples), one in zip(segments, facts, strict=True):
        assert isinstance(one, AudioFacts)
        crop = read(path, start, num_samples)
        assert one.num_samples == len(crop)
        assert one.mean == pytest.approx(crop.mean(dtype=np.float64), abs=1e-6)
        assert one.variance == pytest.approx(crop.var(dtype=np.float64), rel=1e-4)
    whole, quiet, _, _, _, again = facts
    assert whole == scan(path)
    assert quiet == again
    assert quiet.peak < 0.5 * whole.peak


def test_a_bad_segment_leaves_the_others(tmp_path: Path) -> None:
    samples = speech(32_000)
    samples[8_000:16_000] = 0.0
    path = str(write(tmp_path / "a.wav", samples))
    segments = [
        (0, 8_000),
        (31_000, 1_001),
        (8_000, 8_000),
        (20_000, 399),
        (32_000, None),
        (31_000, 1_000),
    ]
    facts = scan_segments(Recording(Location(path), segments))
    assert [isinstance(one, AudioFacts) for one in facts] == [
        True,
        False,
        False,
        False,
        False,
        True,
    ]
    assert str(facts[1]).startswith(
        "segment ends at sample 32001, the recording has 32000; correct the segment"
    )
    assert str(facts[2]).startswith("no sound")
    assert str(facts[3]).startswith("399 samples at 16000 Hz, shorter")
    assert str(facts[4]).startswith("0 samples at 16000 Hz, shorter")


def test_a_thousand_segments_cost_one_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write(tmp_path / "a.wav", speech(1_000 * 400)))
    opened = []
    from hubert_pretrain.data.preparation import scan as module

    original = module.open_stream
    monkeypatch.setattr(module, "open_stream", lambda *args: opened.append(args) or original(*args))
    facts = scan_segments(Recording(Location(path), [(400 * i, 400) for i in range(1_000)]))
    assert len(opened) == 1
    assert all(isinstance(one, AudioFacts) and one.num_samples == 400 for one in facts)
    assert len({one.content for one in facts if isinstance(one, AudioFacts)}) == 1_000


def test_stereo_and_eight_kilohertz_are_recorded(tmp_path: Path) -> None:
    left = speech(8_000)
    facts = scan(
        write(tmp_path / "a.wav", np.stack([left, -0.5 * left], axis=1), 8_000, subtype="FLOAT")
    )
    assert (facts.channels, facts.source_rate, facts.num_samples) == (2, 8_000, 16_000)
    assert facts.peak == np.abs(left).max()
    assert facts.variance == pytest.approx(
        (0.25 * left).var(), rel=0.1
    )  # the mean of the channels, without the uppermost band


def test_a_missing_file_and_a_folder_give_reasons(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path):
        recording = Recording(Location(str(path)), [(0, 400), (400, None)])
        assert [str(reason).startswith("no such file") for reason in scan_or_reason(recording)] == [
            True,
            True,
        ]


def test_processes_change_neither_order_nor_result(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / f"{i:03d}.wav", speech(500 + i, seed=i))) for i in range(130)]
    Path(paths[77]).write_bytes(b"")
    recordings = [Recording(Location(path)) for path in paths]
    serial, parallel = (
        [facts for [facts] in scan_all(iter(recordings), workers=workers)] for workers in (1, 2)
    )
    assert serial == parallel
    assert isinstance(serial[77], str)
    assert [facts.num_samples for facts in serial if isinstance(facts, AudioFacts)] == [
        500 + i for i in range(130) if i != 77
    ]


def test_no_process_outlives_a_killed_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speech(500))
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        "from hubert_pretrain.data.preparation.scan import Recording, scan_all\n"
        "from hubert_pretrain.data.storage import Location\n"
        "if __name__ == '__main__':\n"
        "    results = scan_all([Recording(Location(sys.argv[1]))] * 200, workers=1 + 1)\n"
        "    next(results)\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script), str(path)], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        children = run.stdout.readline().split()
        run.send_signal(signal.SIGKILL)
    assert children
    deadline = time.monotonic() + 300
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, f"still there: {children}"
        time.sleep(0.05)


def alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stereo(path: Path, left: np.ndarray, right: np.ndarray, rate: int = 16_000) -> Path:
    return write(path, np.stack([left, right], axis=1), rate, subtype="FLOAT")


@pytest.mark.parametrize("share", [1.0, 0.999])
def test_channels_that_cancel_each_other_are_refused(tmp_path: Path, share: float) -> None:
    left = speech()
    path = stereo(tmp_path / "a.wav", left, -share * left)
    with pytest.raises(DataError, match=r"cancel each other.*data\.channel=loudest") as error:
        scan(path)
    assert ("66 dB below" in str(error.value)) == (share < 1)
    facts = scan(path, channel=LOUDEST)
    assert (facts.channel, facts.mix_loss) == (0, 0.0)
    assert np.array_equal(read(path, channel=facts.channel), left)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channel", [MIX, 0, 1, LOUDEST])
def test_the_scan_and_read_agree_on_a_channel(tmp_path: Path, rate: int, channel: int) -> None:
    left, right = (speech(2 * rate, seed) for seed in (0, 1))
    path = stereo(tmp_path / "a.wav", 0.5 * left, right, rate)
    facts = scan(path, channel=channel)
    assert facts.channel == (1 if channel == LOUDEST else channel)
    waveform = read(path, channel=facts.channel)
    assert facts.variance == pytest.approx(waveform.var(), rel=1e-3)
    crop = read(path, 10_000, 2_000, channel=facts.channel)
    np.testing.assert_allclose(crop, waveform[10_000:12_000], atol=1e-6)


def test_the_loudest_channel_is_that_of_each_segment(tmp_path: Path) -> None:
    first = np.ones(32_000, np.float32)
    second = np.ones(32_000, np.float32)
    first[16_000:] = second[:16_000] = 0.01
    path = str(stereo(tmp_path / "a.wav", first * speech(), second * speech(seed=1)))
    segments = [Segment(0, 16_000, LOUDEST), Segment(16_000, None, LOUDEST), Segment(0, None, 2)]
    one, other, none = scan_segments(Recording(Location(path), segments))
    assert isinstance(one, AudioFacts)
    assert isinstance(other, AudioFacts)
    assert (one.channel, other.channel) == (0, 1)
    assert str(none).startswith("has 2 channels, channel 2 was asked for")
    with pytest.raises(DataError, match="has 2 channels, channel 2 was asked for"):
        read(path, channel=2)


def test_a_silent_channel_costs_six_decibels(tmp_path: Path) -> None:
    left = speech()
    facts = scan(stereo(tmp_path / "a.wav", left, 0 * left))
    assert facts.mix_loss == pytest.approx(6.02, abs=0.01)
    assert scan(stereo(tmp_path / "b.wav", left, left)).mix_loss == pytest.approx(0, abs=1e-6)
    mono = scan(write(tmp_path / "c.wav", left), channel=0)
    assert (mono.channel, mono.mix_loss) == (MIX, 0.0), "nothing to choose"


class Executor:
    """Runs what is submitted at once, and notes it."""

    def __init__(self, *args: object, **values: object) -> None:
        self.chunks: list[list[Recording]] = []
        Executor.last = self

    def submit(self, work: Callable[..., object], function: object, chunk: object) -> Future:
        self.chunks.append(chunk)
        future: Future = Future()
        future.set_result(work(function, chunk))
        return future

    def shutdown(self, **values: object) -> None:
        pass


def test_few_long_recordings_are_shared_among_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubert_pretrain.data.preparation import scan as module

    monkeypatch.setattr(module, "ProcessPoolExecutor", Executor)
    paths = [tmp_path / f"{number}.wav" for number in range(5)]
    for path in paths:
        path.touch()
    recordings = [Recording(Location(str(path))) for path in paths]
    names = list(module.in_processes(lambda one: one.location.path, recordings, workers=2))
    assert not hasattr(Executor, "last"), "little to read: no processes"
    for path in paths[:4]:
        os.truncate(path, 1 << 25)  # 17 minutes of 16-bit audio, without its bytes on the disk
    assert names == list(module.in_processes(lambda one: one.location.path, recordings, workers=2))
    assert [len(chunk) for chunk in Executor.last.chunks] == [1, 1, 1, 1, 1]
