from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.container import HEAD_BYTES, container_of

SPEECH = 0.1 * np.random.default_rng(0).normal(size=16_000).astype(np.float32)


def head_of(kind: str, rate: int = 16_000, **options: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SPEECH, rate, format=kind, **options)
    return file.getvalue()[:HEAD_BYTES]


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "FLAC", "OGG", "AIFF", "AU", "CAF"])
def test_audio_files_are_recognised(kind: str) -> None:
    assert container_of(head_of(kind)) is not None


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_a_tag_is_recognised(rate: int, mode: str) -> None:
    head = head_of("MP3", rate, bitrate_mode=mode)
    assert container_of(head) == "MP3"
    assert container_of(b"ID3" + head) == "MP3"


@pytest.mark.parametrize("seed", range(5))
def test_pcm_is_not(seed: int) -> None:
    """Noise of every loudness, and samples that look like the header of an MP3 frame."""
    draw = np.random.default_rng(seed)
    for loudness in (1, 30, 1000, 30_000):
        pcm = (loudness * draw.normal(size=2048)).clip(-32768, 32767).astype("<i2").tobytes()
        assert container_of(pcm) is None
        assert container_of(b"\xff\xfb\x90\x00" + pcm) is None
    assert container_of(b"") is None
    assert container_of(bytes(100)) is None
