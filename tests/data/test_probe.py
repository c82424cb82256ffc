import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.probe import AudioFacts, probe, probe_all, probe_or_reason
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
    with pytest.raises(DataError, match=rf"a\.{suffix}: (truncated|cannot be decoded|not readable)") as error:
        probe(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "opus"])
@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"not audio at all\n" * 99], ids=["empty", "zeros", "text"])
def test_what_is_not_audio_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.{suffix}: not readable as audio"):
        probe(path)


def test_a_flac_with_a_hole_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", speech())
    content = bytearray(path.read_bytes())
    content[20_000:30_000] = bytes(10_000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.flac: cannot be decoded after"):
        probe(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused(tmp_path: Path, bad: float) -> None:
    samples = speech()
    samples[5_000] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        probe(write(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_sixteen_bit_numbers_in_a_float_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"samples up to .*expected \[-1, 1\]"):
        probe(write(tmp_path / "a.wav", speech() * 32_768, subtype="FLOAT"))


def test_silence_throughout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sound"):
        probe(write(tmp_path / "a.wav", np.zeros(16_000)))


@pytest.mark.parametrize(("num_samples", "rate", "good"), [(399, 16_000, 0), (400, 16_000, 1), (199, 8_000, 0), (200, 8_000, 1)])
def test_one_window_is_the_least(tmp_path: Path, num_samples: int, rate: int, good: bool) -> None:
    path = write(tmp_path / "a.wav", speech(num_samples), rate)
    if good:
        assert probe(path).num_samples == 400
    else:
        with pytest.raises(DataError, match=r"39\d samples at 16000 Hz, shorter than one model frame \(400\)"):
            probe(path)


def test_no_samples_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 samples at 16000 Hz, shorter"):
        probe(write(tmp_path / "a.wav", np.zeros(0)))


def test_a_wav_written_into_a_pipe_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speech())
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert probe(path).num_samples == 32_000


def test_statistics(tmp_path: Path) -> None:
    samples = np.concatenate([speech(16_000), np.zeros(16_000, np.float32)])
    samples[:100] = 1.0
    facts = probe(write(tmp_path / "a.wav", samples, subtype="FLOAT"))
    assert facts.silence == pytest.approx(0.5, abs=0.01)
    assert facts.clipped == pytest.approx(100 / 32_000)
    assert facts.peak == 1.0
    assert facts.mean == pytest.approx(samples.mean(dtype=np.float64), rel=1e-5)
    assert facts.variance == pytest.approx(samples.var(dtype=np.float64), rel=1e-5)


def test_a_long_file_is_measured_in_blocks_as_in_one(tmp_path: Path) -> None:
    samples = speech(1 << 19)
    facts = probe(write(tmp_path / "a.wav", samples, 22_050, subtype="FLOAT"))
    assert facts.variance == pytest.approx(samples.var(dtype=np.float64), rel=0.5)  # resampling takes the upper band
    assert facts.silence == 0.0
    assert facts.num_samples == round((1 << 19) * 16_000 / 22_050)


def test_content_is_that_of_the_sound_not_of_the_file(tmp_path: Path) -> None:
    samples = (speech() * 32_768).astype(np.int16)
    wav, flac = probe(write(tmp_path / "a.wav", samples)), probe(write(tmp_path / "b.flac", samples))
    samples[-1] += 1
    other = probe(write(tmp_path / "c.wav", samples))
    assert wav.content == flac.content != other.content


def test_a_missing_file_and_a_folder_are_reasons(tmp_path: Path) -> None:
    assert "no such file" in str(probe_or_reason(str(tmp_path / "none.wav")))
    assert "no such file" in str(probe_or_reason(str(tmp_path)))


def test_processes_change_neither_order_nor_result(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / f"{i:03d}.wav", speech(500 + i, seed=i))) for i in range(130)]
    Path(paths[77]).write_bytes(b"")
    serial, parallel = list(probe_all(paths, workers=1)), list(probe_all(paths, workers=2))
    assert serial == parallel
    assert isinstance(serial[77], str)
    assert [facts.num_samples for facts in serial if isinstance(facts, AudioFacts)] == [500 + i for i in range(130) if i != 77]


def test_no_process_outlives_a_killed_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speech(500))
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, sys, time\n"
        "from hubert_pretrain.data.probe import probe_all\n"
        "if __name__ == '__main__':\n"
        "    results = probe_all([sys.argv[1]] * 200, workers=1 + 1)\n"
        "    next(results)\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        children = run.stdout.readline().split()
        run.send_signal(signal.SIGKILL)
    assert children
    deadline = time.monotonic() + 20
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, f"still there: {children}"
        time.sleep(0.05)


def alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
