"""Soft units: of a codebook, of the head of a pretrained network, and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hubert_pretrain.tools.extract_units import main

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, CTCHead, SoftmaxHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.stages.units import save_imported
from hubert_pretrain.targets.soft_units import (
    neighbour_distance,
    soft_units_of_codebook,
    soft_units_of_head,
)
from hubert_pretrain.targets.units import UnitExtractor

TINY = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)


def speech(num_samples: int = 16_000, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    loudness = np.repeat(draw.exponential(size=num_samples // 1000 + 1), 1000)[:num_samples]
    return (0.05 * loudness * draw.normal(size=num_samples)).astype(np.float32)


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    features = Mfcc()
    frames = features(torch.from_numpy(speech(40_000, seed=1))[None])[0]
    return Codebook(frames[::10].clone(), features.fingerprint(), features.grid)


@pytest.fixture(scope="module")
def units(codebook: Codebook) -> UnitExtractor:
    return UnitExtractor(Mfcc(), CodebookSet.of(codebook))


def checkpoint(folder: Path, head: Any, **changes: Any) -> Path:
    torch.manual_seed(0)
    save_model(folder, Hubert(HubertConfig(**{**vars(TINY), **changes})), head=head)
    return folder


@pytest.mark.parametrize("temperature", [None, 0.01, 1.0])
def test_probabilities_of_a_codebook_are_a_softmax_of_distances(
    units: UnitExtractor, codebook: Codebook, temperature: float | None
) -> None:
    found = soft_units_of_codebook(units, temperature=temperature)(speech())
    hard = units(speech())
    frames = units.extractor(torch.from_numpy(speech())[None])[0].double()
    centroids = codebook.centroids.double()
    distances = (frames[:, None] - centroids).square().sum(-1)
    between = (centroids[:, None] - centroids).square().sum(-1)
    scale = between[between > 0].view(len(centroids), -1).min(1).values.mean()
    assert neighbour_distance(codebook) == pytest.approx(float(scale))
    expected = (-distances / (scale * (temperature or 0.1))).softmax(-1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(found.argmax(1), hard)
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-5)


def test_low_temperatures_are_hard_units_and_high_ones_are_even(units: UnitExtractor) -> None:
    hard = np.eye(units.codebooks.sizes[0])[units(speech())]
    low = soft_units_of_codebook(units, temperature=1e-4)(speech())
    assert np.mean(np.abs(low - hard)) < 1e-3
    high = soft_units_of_codebook(units, temperature=1e6)(speech())
    np.testing.assert_allclose(high, 1 / len(hard[0]), atol=1e-4)
    logits = soft_units_of_codebook(units, values="logits")(speech())
    assert (logits <= 0).all()
    assert soft_units_of_codebook(units)(speech(100)).shape == (0, len(hard[0]))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_head_predicts_units_as_in_pretraining(pre_norm: bool, tmp_path: Path) -> None:
    changes = {"do_stable_layer_norm": pre_norm, "normalize_waveform": pre_norm}
    folder = checkpoint(tmp_path / "it2", CodebookHead(16, 6, 9), **changes)
    loaded = load_model(folder)
    head: Any = loaded.build_head()
    wave = torch.from_numpy(speech())[None]
    if pre_norm:
        wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-5).sqrt()
    with torch.inference_mode():
        last = loaded.model(wave).last[0]
        logits = head(last)
        projection = head.projection(last)
    for values, expected in (
        ("logits", logits),
        ("probabilities", logits.softmax(-1)),
        ("projection", projection),
    ):
        found = soft_units_of_head(folder, values=values)
        np.testing.assert_allclose(found(speech()), expected.numpy(), rtol=1e-4, atol=1e-5)
        assert found.width == expected.shape[1]
    warm = soft_units_of_head(folder, temperature=3.0)
    np.testing.assert_allclose(warm(speech()), (logits / 3).softmax(-1).numpy(), atol=1e-5)


def test_each_of_several_codebooks_adds_up_to_one(tmp_path: Path) -> None:
    found = soft_units_of_head(checkpoint(tmp_path, SoftmaxHead(16, [5, 3])))(speech())
    np.testing.assert_allclose(found[:, :5].sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(found[:, 5:].sum(1), 1.0, atol=1e-5)


def test_refusals(units: UnitExtractor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a codebook has no projection"):
        soft_units_of_codebook(units, values="projection")
    with pytest.raises(ConfigError, match="temperature 0: expected a number above 0"):
        soft_units_of_codebook(units, temperature=0)
    with pytest.raises(ConfigError, match="'hard': expected one of probabilities"):
        soft_units_of_codebook(units, values="hard")
    with pytest.raises(ArtefactError, match="holds no head of pretraining"):
        soft_units_of_head(checkpoint(tmp_path / "ctc", CTCHead(16, 5)))
    with pytest.raises(ArtefactError, match="holds no head of pretraining"):
        soft_units_of_head(checkpoint(tmp_path / "bare", None))
    with pytest.raises(ConfigError, match="softmax head has no projection"):
        soft_units_of_head(checkpoint(tmp_path / "s", SoftmaxHead(16, 5)), values="projection")


def test_the_command_writes_an_array_for_each_recording(
    units: UnitExtractor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {"_target_": "hubert_pretrain.features.mfcc.Mfcc"}
    save_imported(units.codebooks, node, tmp_path / "cluster")
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, speech(seed=ord(name[0])), 16_000, subtype="FLOAT")
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    files = [str(tmp_path / name) for name in ("a.wav", "broken.wav", "b.wav")]
    soft = ["--soft", "probabilities", "--output", str(tmp_path / "soft")]
    assert main([str(tmp_path / "cluster"), *files, *soft]) == 1
    assert "broken.wav" in capsys.readouterr().err
    for name in "ab":
        expected = soft_units_of_codebook(units)(speech(seed=ord(name)))
        np.testing.assert_allclose(np.load(tmp_path / "soft" / f"{name}.npy"), expected, atol=1e-5)
    about = json.loads((tmp_path / "soft" / "soft-units.json").read_text())
    assert (about["source"], about["temperature"], about["width"]) == ("codebook", 0.1, 13)
    assert about["hop_seconds"] == 0.02
    assert about["codebook"] == units.codebooks.fingerprint

    folder = checkpoint(tmp_path / "it2", CodebookHead(16, 6, 9))
    words = ["--soft", "projection", "--output", str(tmp_path / "p"), "--dtype", "float16"]
    assert main([str(folder), files[0], *words]) == 0
    array = np.load(tmp_path / "p" / "a.npy")
    assert (array.shape, array.dtype) == ((49, 6), np.float16)

    assert main([str(folder), files[0], "--soft", "logits"]) == 2
    assert "give --output FOLDER" in capsys.readouterr().err
    assert main([str(tmp_path / "cluster"), files[0], "--temperature", "1"]) == 2
    assert "are of --soft" in capsys.readouterr().err
    (tmp_path / "more").mkdir()
    soundfile.write(tmp_path / "more" / "a.wav", speech(), 16_000)
    both = [files[0], str(tmp_path / "more" / "a.wav")]
    assert main([str(tmp_path / "cluster"), *both, *soft]) == 2
    assert "would hold both" in capsys.readouterr().err
