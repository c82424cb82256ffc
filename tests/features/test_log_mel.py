from __future__ import annotations

import json

import pytest
import torch

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.extractor import PackedExtractor
from hubert_pretrain.features.log_mel import LogMel
from hubert_pretrain.frames import MODEL_GRID, FrameGrid


def test_the_grid_is_the_models_or_the_one_asked_for() -> None:
    assert LogMel().grid == MODEL_GRID
    assert LogMel(40, hop_seconds=0.04).grid == FrameGrid(window=400, hop=640)
    for num_samples in (0, 399, 400, 1039, 1040, 9_999):
        assert LogMel(40, hop_seconds=0.04)(torch.zeros(2, num_samples)).shape == (
            2,
            FrameGrid(400, 640).num_frames(num_samples),
            40,
        )


def test_a_batch_of_any_lengths_equals_its_utterances() -> None:
    waveforms = [torch.randn(length) for length in (5_000, 400, 399, 17_123, 0, 640)]
    for features in (LogMel(80), LogMel(40, hop_seconds=0.04)):
        torch.testing.assert_close(
            features.extract_packed(waveforms),
            torch.cat([features(each[None])[0] for each in waveforms]),
            atol=1e-4,
            rtol=0,
        )


def test_it_is_an_extractor_with_a_json_fingerprint() -> None:
    features = LogMel(40)
    assert isinstance(features, PackedExtractor)
    assert json.loads(json.dumps(features.fingerprint())) == features.fingerprint()
    assert features.fingerprint() != LogMel(40, hop_seconds=0.04).fingerprint()


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_mel_bins=0"):
        LogMel(0)
    with pytest.raises(ConfigError, match="num_mel_bins=400 lie between"):
        LogMel(400)
