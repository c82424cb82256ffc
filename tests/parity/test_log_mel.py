"""Our log-mel energies against torchaudio's Kaldi fbank and against kaldi-native-fbank (Kaldi's own
code).
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

from hubert_pretrain.features.log_mel import LogMel

TOLERANCE = 1e-3


def noise(num_samples: int, seed: int) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25)
@given(
    num_samples=st.integers(1_400, 12_000),
    seed=st.integers(0, 1000),
    bins=st.sampled_from([40, 80]),
    times=st.sampled_from([(0.02, 0.025), (0.04, 0.025), (0.01, 0.025), (0.04, 0.0800625)]),
)
def test_equals_torchaudio_on_any_grid(
    num_samples: int, seed: int, bins: int, times: tuple[float, float]
) -> None:
    from torchaudio.compliance.kaldi import fbank

    waveform = noise(num_samples, seed)
    (hop, window) = times
    ours = LogMel(bins, hop_seconds=hop, window_seconds=window)
    expected = fbank(
        waveform[None],
        num_mel_bins=bins,
        frame_shift=1000 * hop,
        frame_length=1000 * window,
        dither=0.0,
    )
    found = ours(waveform[None])[0]
    assert found.shape == (ours.grid.num_frames(num_samples), bins) == expected.shape
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def kaldi_energies(waveform: Tensor) -> Tensor:
    """Kaldi's C++: (S,) -> (F, 80) at 50 Hz."""
    native = pytest.importorskip("kaldi_native_fbank")
    options = native.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.frame_shift_ms = 20.0
    options.mel_opts.num_bins = 80
    computer = native.OnlineFbank(options)
    computer.accept_waveform(16_000, waveform.numpy())
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return torch.from_numpy(np.stack(frames))


def check_against_kaldi(waveform: Tensor) -> None:
    difference = (LogMel(80)(waveform[None])[0] - kaldi_energies(waveform)).abs()
    # Where a band is empty beside a loud one, two float32 Fourier transforms leave different
    # rounding errors (see test_mfcc.py).
    assert difference.mean() < 1e-4
    assert (difference < TOLERANCE).float().mean() > 0.9995


def test_equals_kaldi() -> None:
    check_against_kaldi(noise(8_000, 1))


def test_equals_kaldi_on_real_speech(shared: Path) -> None:
    for path in sorted((shared / "data" / "librispeech").rglob("*.flac"))[:4]:
        check_against_kaldi(torch.from_numpy(soundfile.read(path, dtype="float32")[0]))
