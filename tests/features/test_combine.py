from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.combine import Concatenate, Deltas, Splice
from hubert_pretrain.features.extractor import PackedExtractor, extract
from hubert_pretrain.features.log_mel import LogMel
from hubert_pretrain.features.mfcc import Mfcc

LENGTHS = (5_000, 400, 399, 17_123, 720, 1_000)


@pytest.fixture(scope="module")
def waveforms() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in LENGTHS]


def test_concatenation_is_side_by_side(waveforms: list[Tensor]) -> None:
    both = Concatenate([Mfcc(), LogMel(40)])
    assert both.dim == 79
    found = both.extract_packed(waveforms)
    torch.testing.assert_close(found[:, :39], Mfcc().extract_packed(waveforms))
    torch.testing.assert_close(found[:, 39:], LogMel(40).extract_packed(waveforms))


def test_splices_repeat_the_ends_of_each_utterance(waveforms: list[Tensor]) -> None:
    spliced = Splice(Mfcc(), left=2, right=1)
    found = spliced.extract_packed(waveforms).split(
        [spliced.grid.num_frames(length) for length in LENGTHS]
    )
    for each, waveform in zip(found, waveforms, strict=True):
        frames = Mfcc()(waveform[None])[0]
        for time in range(len(frames)):
            near = [
                frames[min(max(time + offset, 0), len(frames) - 1)] for offset in (-2, -1, 0, 1)
            ]
            torch.testing.assert_close(each[time], torch.cat(near), atol=1e-4, rtol=0)


def test_deltas_are_those_of_torchaudio(waveforms: list[Tensor]) -> None:
    from torchaudio.functional import compute_deltas

    features = Deltas(LogMel(40))
    found = features.extract_packed(waveforms).split(
        [features.grid.num_frames(length) for length in LENGTHS]
    )
    for each, waveform in zip(found, waveforms, strict=True):
        if len(each) == 0:
            continue
        frames = LogMel(40)(waveform[None])[0]
        first = compute_deltas(frames.T)
        expected = torch.cat([frames.T, first, compute_deltas(first)]).T
        torch.testing.assert_close(each, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "features",
    [
        Splice(Mfcc(), left=1, right=1),
        Deltas(Mfcc(), order=1),
        Concatenate([Mfcc(), Deltas(LogMel(20))]),
    ],
)
def test_combinations_are_extractors(features: PackedExtractor, waveforms: list[Tensor]) -> None:
    assert isinstance(features, PackedExtractor)
    assert json.loads(json.dumps(features.fingerprint())) == features.fingerprint()
    assert features(torch.zeros(3, 8_000)).shape == (3, 24, features.dim)
    alone = torch.cat([features(waveform[None])[0] for waveform in waveforms])
    torch.testing.assert_close(extract(features, waveforms), alone, atol=1e-4, rtol=0)


def test_invalid_combinations_are_refused() -> None:
    with pytest.raises(ConfigError, match="only frames of one grid"):
        Concatenate([Mfcc(), LogMel(40, hop_seconds=0.04)])
    with pytest.raises(ConfigError, match="is empty"):
        Concatenate([])
    with pytest.raises(ConfigError, match="left=-1"):
        Splice(Mfcc(), left=-1, right=0)
    with pytest.raises(ConfigError, match="order=0"):
        Deltas(Mfcc(), order=0)
