"""Our MFCC against torchaudio's Kaldi recipe (what fairseq calls) and against kaldi-native-fbank
(Kaldi's own code).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import MODEL_GRID

TOLERANCE = 1e-3
mfcc = Mfcc()


def reference(waveform: Tensor) -> Tensor:
    """fairseq's MfccFeatureReader: (S,) -> (F, 39) at 100 Hz."""
    from torchaudio.compliance.kaldi import mfcc as kaldi_mfcc
    from torchaudio.functional import compute_deltas

    static = kaldi_mfcc(waveform[None], use_energy=False).T
    first = compute_deltas(static)
    return torch.cat([static, first, compute_deltas(first)]).T


def native_cepstra(waveform: Tensor) -> Tensor:
    """Kaldi's C++: (S,) -> (F, 13) at 100 Hz."""
    fbank = pytest.importorskip("kaldi_native_fbank")
    options = fbank.MfccOptions()
    options.use_energy = False
    options.frame_opts.dither = 0.0
    computer = fbank.OnlineMfcc(options)
    computer.accept_waveform(16_000, waveform.numpy())
    computer.input_finished()
    return torch.from_numpy(
        np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
    )


def noise(num_samples: int, seed: int, level: float = 0.1) -> Tensor:
    return level * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40)
@given(
    num_samples=st.integers(400, 12_000),
    seed=st.integers(0, 1000),
    level=st.sampled_from([1e-4, 1e-2, 0.3]),
)
def test_equals_torchaudio_at_any_length(num_samples: int, seed: int, level: float) -> None:
    waveform = noise(num_samples, seed, level)
    ours = mfcc(waveform[None])[0]
    assert ours.shape == (MODEL_GRID.num_frames(num_samples), 39)
    torch.testing.assert_close(ours, reference(waveform)[::2], atol=TOLERANCE, rtol=0)


@settings(max_examples=15)
@given(num_samples=st.integers(400, 12_000), seed=st.integers(0, 1000))
def test_equals_kaldi_at_any_length(num_samples: int, seed: int) -> None:
    waveform = noise(num_samples, seed)
    torch.testing.assert_close(
        mfcc.cepstra(waveform), native_cepstra(waveform), atol=TOLERANCE, rtol=0
    )


def real_speech(shared: Path, count: int) -> list[Tensor]:
    paths = sorted((shared / "data" / "librispeech").rglob("*.flac"))[:count]
    return [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]


def test_equals_torchaudio_on_real_speech(shared: Path) -> None:
    for waveform in real_speech(shared, 8):
        torch.testing.assert_close(
            mfcc(waveform[None])[0], reference(waveform)[::2], atol=TOLERANCE, rtol=0
        )


def test_equals_kaldi_on_real_speech(shared: Path) -> None:
    """Within 1e-3 of each coefficient's spread. In absolute terms two float32 Fourier transforms
    differ by up to 3e-3 where empty mel bins lie beside loud ones; torchaudio and Kaldi differ as
    much, and ours is not further from Kaldi than torchaudio is."""
    for waveform in real_speech(shared, 6):
        native = native_cepstra(waveform)
        difference = (mfcc.cepstra(waveform) - native).abs()
        assert (difference / native.std(dim=0)).max() < TOLERANCE
        assert difference.max() < 1.1 * (reference(waveform)[:, :13] - native).abs().max()


def test_silence_and_quiet_noise_hit_the_floor_like_the_reference() -> None:
    for waveform in (torch.zeros(4000), noise(4000, 0, 1e-7), torch.full((4000,), 0.5)):
        torch.testing.assert_close(
            mfcc(waveform[None])[0], reference(waveform)[::2], atol=TOLERANCE, rtol=0
        )
