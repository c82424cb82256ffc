"""Checks and normalisation of waveforms before the network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.errors import DataError
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.preprocess import normalize, normalize_, prepare_waveform

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embedding_groups=2,
)


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (
            np.zeros(16_000, np.float32),
            8_000,
            r"a\.wav: has 8000 samples per second, expected 16000; resample",
        ),
        (np.zeros(399, np.float32), 16_000, r"a\.wav: has 399 samples, expected at least 400"),
        (
            np.full(500, np.nan, np.float32),
            16_000,
            r"a\.wav: 500 of 500 samples are NaN or infinite",
        ),
        (np.array([0.0] * 999 + [np.inf]), 16_000, r"a\.wav: 1 of 1000 samples"),
        (np.zeros(16_000, np.int16), 16_000, r"a\.wav: holds torch\.int16, expected floats"),
        (
            np.zeros((1, 2, 16_000), np.float32),
            16_000,
            r"a\.wav: has shape \(1, 2, 16000\), expected \(S,\) or \(B, S\)",
        ),
    ],
)
def test_mistakes(waveform: Any, rate: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_waveform(waveform, sampling_rate=rate, config=SMALL, name="a.wav")


def test_a_network_of_normalised_waveforms_gets_them() -> None:
    torch.manual_seed(0)
    waveform = 3 + 2 * torch.randn(2, 1000)
    before = waveform.clone()
    assert torch.equal(prepare_waveform(waveform, sampling_rate=16_000, config=SMALL), waveform)
    config = dataclasses.replace(SMALL, normalize_waveform=True)
    expected = torch.nn.functional.layer_norm(waveform, (1000,))
    torch.testing.assert_close(
        prepare_waveform(waveform, sampling_rate=16_000, config=config), expected
    )
    assert torch.equal(waveform, before)  # the caller's own is left as it was


def test_normalisation_is_layer_norm_of_torch() -> None:
    torch.manual_seed(0)
    quiet = torch.randn(5_000) * 1e-3 + 0.002  # so quiet that the variance floor matters
    expected = torch.nn.functional.layer_norm(quiet, (5_000,))
    torch.testing.assert_close(normalize(quiet), expected)
    mean = float(quiet.mean())
    variance = float(quiet.var(correction=0))
    array = normalize_(quiet.numpy().copy(), mean, variance)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-5)


def test_a_crop_is_normalised_as_inside_the_whole() -> None:
    whole = np.random.default_rng(0).standard_normal(5_000).astype(np.float32) * 0.3 + 0.2
    mean = float(whole.mean())
    variance = float(whole.var())
    crop = normalize_(whole[100:900].copy(), mean, variance)
    np.testing.assert_array_equal(crop, normalize_(whole.copy(), mean, variance)[100:900])


def test_features_of_a_layer() -> None:
    loaded = LoadedModel(Hubert(SMALL).eval(), "pretrain")
    waveform = torch.randn(16_000)
    states = loaded.model(waveform[None], hidden_states=True).hidden_states
    assert states is not None
    for layer in (1, 2):
        torch.testing.assert_close(
            loaded.features(waveform, layer=layer, sampling_rate=16_000), states[layer - 1]
        )
    with pytest.raises(DataError, match="layers 1 to 2"):
        loaded.features(waveform, layer=3, sampling_rate=16_000)


def test_a_head_takes_features_and_learns_on_them() -> None:
    """They are no tensors of inference mode, which gradients refuse."""
    loaded = LoadedModel(Hubert(SMALL).eval(), "pretrain")
    features = loaded.features(torch.randn(16_000), layer=2, sampling_rate=16_000)
    assert not features.is_inference()
    assert not features.requires_grad
    head = torch.nn.Linear(features.shape[-1], 3)
    head(features).sum().backward()
    assert head.weight.grad is not None
