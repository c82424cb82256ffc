"""A folder with every odd kind of file: each is taken, counted or quarantined with its reason, and
training reads what `prepare` takes.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data import ffmpeg
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.preparation.corpus_card import describe
from hubert_pretrain.preflight import corpus as preflight
from tests.folders import refuse_to_list

from .test_through_prepare import prepared

RATE = 16_000


def sound(suffix: str = "WAV", seconds: float = 1.0, rate: int = RATE, **options: str) -> Callable:
    """Writes noise of its own in a format of libsndfile."""

    def write(path: Path) -> None:
        draw = np.random.default_rng(list(os.fsencode(path.name)))
        with open(path, "wb") as file:
            soundfile.write(
                file, draw.normal(0, 0.1, int(seconds * rate)), rate, format=suffix, **options
            )

    return write


def sphere(path: Path) -> None:
    values = (np.sin(np.arange(RATE) / 20) * 12_000).astype("<i2")
    header = f"NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i {len(values)}\n"
    header += "sample_rate -i 16000\nsample_n_bytes -i 2\n"
    header += "sample_byte_format -s2 01\nsample_sig_bits -i 16\nsample_coding -s3 pcm\nend_head\n"
    path.write_bytes(header.encode().ljust(1024) + values.tobytes())


def stereo(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(1).normal(0, 0.1, (RATE, 2)), RATE)


def numbers(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        soundfile.write(path, np.full(RATE, value, np.float32), RATE, subtype="FLOAT")

    return write


def cut(path: Path) -> None:
    sound()(path)
    os.truncate(path, 20_000)


def bytes_of(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(path.parent, os.O_RDONLY)  # a socket's path has at most 108 bytes
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    # -- taken: the number of samples at 16 kHz
    "plain.wav": (sound(), "taken 16000"),
    "capitals.WAV": (sound(rate=8_000), "taken 16000"),
    "lossless.flac": (sound("FLAC"), "taken 16000"),
    "lossy.mp3": (sound("MP3"), "taken 16000"),
    "vorbis.ogg": (sound("OGG"), "taken 16000"),
    "more vorbis.oga": (sound("OGG"), "taken 16000"),
    "voice.opus": (sound("OGG", subtype="OPUS"), "taken 16000"),
    "apple.aiff": (sound("AIFF"), "taken 16000"),
    "apple core.caf": (sound("CAF"), "taken 16000"),
    "sun.au": (sound("AU"), "taken 16000"),
    "long.w64": (sound("W64"), "taken 16000"),
    "speech.sph": (sphere, "taken 16000"),
    "telephone.gsm.wav": (sound(rate=8_000, subtype="GSM610"), "taken 16640"),  # whole blocks
    "two channels.wav": (stereo, "taken 16000"),
    "wrong suffix.mp3": (sound("FLAC"), "taken 16000"),
    "deep/er/ü 😀.wav": (sound(), "taken 16000"),
    "linked.wav": (lambda path: path.symlink_to("../elsewhere.wav"), "taken 16000"),
    # -- quarantined
    "empty.wav": (bytes_of(b""), "not readable as audio (the file is empty)"),
    "garbage.mp3": (bytes_of(b"garbage" * 999), "not readable as audio"),
    "cut.wav": (cut, "truncated or damaged"),
    "blip.wav": (sound(seconds=0.01), "160 samples at 16000 Hz, shorter than one model frame"),
    "silence.wav": (numbers(0.0), "no sound, every sample is the same"),
    "broken numbers.wav": (numbers(np.nan), "NaN or infinity"),
    "pipe.wav": (os.mkfifo, "no such file, it is a folder, a pipe or a device"),
    "socket.wav": (bind, "no such file, it is a folder, a pipe or a device"),
    "plain.ogg": (sound("OGG"), "has the name of"),
    "dangling.wav": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "caf\udce9.wav": (sound(), "a name or text that is not UTF-8"),
    # -- passed over: the kind under which it is counted
    "transcript.txt": (bytes_of(b"HELLO"), "counted .txt"),
    "README": (bytes_of(b"HELLO"), "counted no suffix"),
    "._plain.wav": (sound(), "counted hidden"),
    ".trash/old.wav": (sound(), "counted hidden"),
    "film.xyz": (bytes_of(b"HELLO"), "counted .xyz"),
    # -- by an extra, or counted without it
    "mobile.m4a": (bytes_of(b"HELLO"), "counted .m4a"),
}


@pytest.fixture
def odd_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of `FILES`, a folder that cannot be read (also by root), and a folder called x.wav."""
    root = tmp_path / "odd"
    sound()(tmp_path / "elsewhere.wav")
    for name, (write, _) in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name)
    for folder in ("locked", "x.wav"):
        (root / folder).mkdir()
        sound()(root / folder / "inside.wav")
    refuse_to_list(monkeypatch, "locked")
    return root


def outcomes(folder: Path, root: Path) -> dict[str, str]:
    """File -> its outcome by the manifest and the list of the quarantine."""
    corpus = Corpus.open(folder)
    found = {}
    for row in range(len(corpus.manifest)):
        utterance = corpus.manifest[row]
        assert len(corpus.read(row)) == utterance.num_samples, utterance.path
        found[str(Path(utterance.path).relative_to(root))] = f"taken {utterance.num_samples}"
    for line in (folder / "quarantine.jsonl").read_text().splitlines():
        bad = json.loads(line)
        found[str(Path(bad["path"]).relative_to(root))] = bad["reason"]
    return found


@pytest.mark.parametrize("with_ffmpeg", [False, True])
def test_every_file_is_taken_counted_or_quarantined_with_its_reason(
    tmp_path: Path, odd_corpus: Path, monkeypatch: pytest.MonkeyPatch, with_ffmpeg: bool
) -> None:
    expected = {
        name.replace("\udce9", r"\xe9"): outcome
        for name, (_, outcome) in FILES.items()
        if not outcome.startswith("counted")
    } | {"x.wav/inside.wav": "taken 16000"}
    counted = [outcome[8:] for _, outcome in FILES.values() if outcome.startswith("counted")]
    monkeypatch.setattr(ffmpeg, "is_installed", lambda: with_ffmpeg)
    if with_ffmpeg:
        pytest.importorskip("av")
        from tests.data.test_ffmpeg import write_ffmpeg

        write_ffmpeg(odd_corpus / "mobile.m4a", "aac", "ipod", RATE, seconds=1.0)
        expected["mobile.m4a"] = "taken"
        counted.remove(".m4a")
    words = ["data=folder", f"data.root={odd_corpus}", "data.max_bad_fraction=0.5"]
    corpus = prepared(tmp_path / "prepare", *words)

    found = outcomes(tmp_path / "prepare", odd_corpus)
    assert set(found) == set(expected)
    for name, outcome in expected.items():
        assert found[name].startswith(outcome), (name, found[name])

    # The card counts the rest, and check warns.
    passed_over = corpus.card["passed_over"]
    assert passed_over["files"] == {kind: counted.count(kind) for kind in set(counted)}
    assert passed_over["unreadable_folders"] == [f"{odd_corpus}/locked: Permission denied"]
    assert sum(passed_over["files"].values()) + len(found) == len(FILES) + 1
    text = describe(corpus.card)
    assert f"passed over  {len(counted)} files are not taken (" in text
    assert "locked: Permission denied; their files are missing" in text
    assert ("pip install av" in text) == (not with_ffmpeg)
    check = preflight.utterances(corpus)
    assert (check.state, "locked" in check.fix) == ("warning", True)
