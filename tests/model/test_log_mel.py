"""The log-mel front end: stacked energies of features/log_mel.py, which are equal to Kaldi's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.features.log_mel import LogMel
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import MFCC_GRID, FrameGrid, seconds
from hubert_pretrain.interop.registry import FORMATS
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import SoftmaxHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.log_mel import SPEECH_DEVIATION, SPEECH_MEAN, LogMelEncoder

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "layerdrop": 0.0,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "front_end": "log_mel",
    "mel_bins": 40,
}


def config(**changes: object) -> HubertConfig:
    return HubertConfig(**{**SMALL, **changes})  # type: ignore[arg-type]


@given(stack=some.integers(1, 5), extra=some.integers(0, 3000))
def test_frames_are_stacked_energies_of_kaldi(stack: int, extra: int) -> None:
    form = config(mel_stack=stack)
    waveform = 0.1 * torch.randn(
        2, form.grid.window + extra, generator=torch.Generator().manual_seed(extra)
    )
    found = LogMelEncoder(form)(waveform)
    energies = LogMel(40, hop_seconds=seconds(MFCC_GRID.hop))(waveform)  # (B, F, bands)
    frames = form.grid.num_frames(waveform.shape[1])
    stacked = energies[:, : frames * stack].reshape(2, frames, stack * 40)
    expected = (stacked - SPEECH_MEAN) / SPEECH_DEVIATION
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_grids_of_20_and_40_ms() -> None:
    assert config(mel_stack=2).grid == FrameGrid(window=560, hop=320)
    assert config(mel_stack=4).grid == FrameGrid(window=880, hop=640)


def test_a_crop_on_the_grid_gives_the_frames_of_the_whole() -> None:
    form = config(mel_stack=4)
    encoder = LogMelEncoder(form)
    waveform = torch.randn(1, 20_000)
    start = form.grid.start_sample(7)
    torch.testing.assert_close(
        encoder(waveform[:, start:]), encoder(waveform)[:, 7:], atol=1e-4, rtol=0
    )


def test_bf16_does_not_reach_the_energies() -> None:
    encoder = LogMelEncoder(config())
    waveform = torch.randn(1, 8000)
    expected = encoder(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(encoder(waveform), expected)


def test_mfcc_on_its_grid_is_the_middle_frame_of_kaldi() -> None:
    waveform = torch.randn(3, 16_000)
    whole = Mfcc(hop_seconds=seconds(MFCC_GRID.hop))(waveform)
    for stack, first in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2)):
        grid = config(mel_stack=stack).grid
        found = Mfcc(hop_seconds=seconds(grid.hop), window_seconds=seconds(grid.window))(waveform)
        assert found.shape[1] == grid.num_frames(16_000)
        torch.testing.assert_close(
            found, whole[:, first::stack][:, : found.shape[1]], atol=1e-3, rtol=0
        )
    with pytest.raises(ConfigError, match="expected a multiple of the first"):
        Mfcc(hop_seconds=0.015)


def test_a_checkpoint_loads_and_gives_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    form = config(mel_stack=4, feat_proj_layer_norm=False)
    model = Hubert(form).eval()
    waveform = torch.randn(1, 40_000)
    save_model(tmp_path, model, head=SoftmaxHead(16, 7))
    loaded = load_model(tmp_path)
    assert loaded.model.config == form
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(waveform).last, model(waveform).last)
        expected = model(waveform, layers=1).last
    layer = HubertLayer(tmp_path, 1, chunk_seconds=1.0, context_seconds=0.4)
    assert layer.grid == form.grid
    assert layer(waveform).shape == expected.shape  # in chunks
    torch.testing.assert_close(HubertLayer(tmp_path, 1)(waveform), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["huggingface", "fairseq", "s3prl", "torchaudio", "torch"])
def test_formats_that_cannot_hold_it_are_refused(name: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model", Hubert(config()), head=SoftmaxHead(16, 7))
    with pytest.raises(
        ConfigError,
        match=f"export.format={name} cannot hold model.front_end=log_mel.*choose onnx",
    ):
        FORMATS[name].write(tmp_path / "out" / "file", load_model(tmp_path / "model"))
    assert not (tmp_path / "out").exists()


def test_invalid_values() -> None:
    for changes, message in (
        ({"front_end": "mel"}, "front_end"),
        ({"mel_stack": 0}, "mel_stack"),
        ({"mel_hop_seconds": 0.0}, "mel_hop_seconds"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**changes).validate()
    with pytest.raises(ConfigError, match="mel_bins=400"):
        Hubert(config(mel_bins=400))
