from __future__ import annotations

from typing import Any

import torch

from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model import log_mel as module


def test_every_length_gives_the_frames_of_the_model_grid() -> None:
    mfcc = Mfcc()
    for num_samples in [0, 399, *range(400, 1500, 7), 719, 720, 1039, 1040]:
        assert mfcc(torch.zeros(1, num_samples)).shape == (
            1,
            MODEL_GRID.num_frames(num_samples),
            39,
        )


def test_a_batch_equals_its_rows() -> None:
    waveforms = torch.randn(3, 8000)
    batch = Mfcc()(waveforms)
    for row, waveform in zip(batch, waveforms, strict=True):
        torch.testing.assert_close(row, Mfcc()(waveform[None])[0], atol=1e-4, rtol=0)


def test_passes_over_a_long_recording_leave_no_seam(monkeypatch: Any) -> None:
    waveform = torch.randn(1, 50_000)
    whole = Mfcc()(waveform)
    monkeypatch.setitem(module.FRAMES_AT_ONCE, "cpu", 37)
    torch.testing.assert_close(Mfcc()(waveform), whole, atol=1e-4, rtol=0)


def test_it_is_an_extractor_with_a_json_fingerprint() -> None:
    import json

    mfcc = Mfcc()
    assert isinstance(mfcc, FeatureExtractor)
    assert mfcc.grid == MODEL_GRID
    assert json.loads(json.dumps(mfcc.fingerprint())) == mfcc.fingerprint()
    assert not mfcc.state_dict(), "tables are derived, not stored"
