from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert


def tiny(**changes: object) -> HubertConfig:
    sizes = {
        "conv_dim": [16] * 7,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    positions = {
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "projection_size": 16,
    }
    return HubertConfig(**{**sizes, **positions, **changes})  # type: ignore[arg-type]


LARGE_LIKE = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "normalize_waveform": True,
}


@pytest.fixture(params=[{}, LARGE_LIKE], ids=["base", "large"])
def checkpoint(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path, Hubert(tiny(**request.param)))
    return tmp_path


def test_it_is_the_block_output_of_the_model(checkpoint: Path) -> None:
    waveform = 0.1 * torch.randn(2, 16_000)
    model = load_model(checkpoint).model.eval()
    normalised = waveform
    if model.config.normalize_waveform:
        normalised = (waveform - waveform.mean(-1, keepdim=True)) / (
            waveform.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
    with torch.no_grad():
        states = model(normalised, hidden_states=True).hidden_states
    for layer in (1, 2, 3):
        extractor = HubertLayer(checkpoint, layer)
        frames = extractor(waveform)
        assert frames.shape == (2, 49, 32)
        torch.testing.assert_close(frames, states[layer - 1], atol=1e-5, rtol=1e-5)


def test_long_recordings_in_chunks_equal_whole_ones_up_to_attention(checkpoint: Path) -> None:
    waveform = 0.1 * torch.randn(1, 16_000 * 9 + 123) * torch.linspace(0.2, 2.0, 16_000 * 9 + 123)
    whole = HubertLayer(checkpoint, 1)
    chunked = HubertLayer(checkpoint, 1, chunk_seconds=2.5, context_seconds=0.6)
    expected = whole(waveform)
    found = chunked(waveform)
    assert found.shape == expected.shape
    # Attention of a random model is nearly uniform over the chunk, so a seam or a shift of one
    # frame would show at once.
    assert (found - expected).abs().mean() < 0.1 * (expected[:, 1:] - expected[:, :-1]).abs().mean()


def test_centred_frames_have_no_mean_over_their_utterance(checkpoint: Path) -> None:
    waveforms = [0.1 * torch.randn(samples) for samples in (16_000 * 2, 9_000, 300, 16_000 * 4)]
    # The last one is computed in chunks, the third one is shorter than a frame.
    settings = {"chunk_seconds": 2.5, "context_seconds": 0.6}
    plain = HubertLayer(checkpoint, [1, 3], **settings)
    centred = HubertLayer(checkpoint, [1, 3], center_utterances=True, **settings)
    counts = [plain.grid.num_frames(len(waveform)) for waveform in waveforms]
    expected = plain.extract_packed(waveforms).split(counts)
    found = centred.extract_packed(waveforms).split(counts)
    for row, row_expected in zip(found, expected, strict=True):
        torch.testing.assert_close(row, row_expected - row_expected.sum(0) / max(1, len(row)))
    # A codebook of the one refuses frames of the other; codebooks made before stay valid.
    assert centred.fingerprint() == {**plain.fingerprint(), "center_utterances": True}


def test_the_conv_encoder_in_pieces_equals_the_whole(checkpoint: Path) -> None:
    waveform = 0.1 * torch.randn(1, 16_000 * 5 + 77) * torch.linspace(0.2, 2.0, 16_000 * 5 + 77)
    extractor = HubertLayer(checkpoint, 1, chunk_seconds=1.0, context_seconds=0.1)
    with torch.inference_mode():
        pieces = torch.cat(list(extractor.conv_stack().encode_pieces(waveform, 16_000)), dim=1)
        torch.testing.assert_close(
            pieces, extractor.model.encode_frames(waveform), atol=1e-5, rtol=1e-4
        )


def test_the_fingerprint_follows_the_weights_not_the_path(tmp_path: Path) -> None:
    first = Hubert(tiny())
    second = Hubert(tiny())
    for folder, model in (("a", first), ("b", first), ("c", second)):
        (tmp_path / folder).mkdir()
        save_model(tmp_path / folder, model)
    a, b, c = (HubertLayer(tmp_path / folder, 2).fingerprint() for folder in "abc")
    assert a == b != c
    assert isinstance(HubertLayer(tmp_path / "a", 2), FeatureExtractor)


def test_a_layer_that_does_not_exist_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.layer=4, but the model has layers 1 to 3"):
        HubertLayer(checkpoint, 4)
    with pytest.raises(ConfigError, match="more than twice"):
        HubertLayer(checkpoint, 1, chunk_seconds=1.0, context_seconds=1.0)


def test_a_batch_of_any_lengths_equals_its_utterances(checkpoint: Path) -> None:
    waveforms = [
        0.1 * torch.randn(length) for length in (16_000, 15_500, 399, 12_345, 16_000, 16_000 * 4)
    ]
    extractor = HubertLayer(
        checkpoint, 3, chunk_seconds=2.0, context_seconds=0.5
    )  # the last one is long
    alone = torch.cat([extractor(waveform[None])[0] for waveform in waveforms])
    torch.testing.assert_close(extractor.extract_packed(waveforms), alone, atol=1e-5, rtol=1e-4)


def test_several_layers_are_side_by_side(checkpoint: Path) -> None:
    waveform = 0.1 * torch.randn(2, 16_000)
    several = HubertLayer(checkpoint, [3, 1])
    assert several.dim == 64
    assert several.fingerprint()["layer"] == [3, 1]
    expected = torch.cat(
        [HubertLayer(checkpoint, 3)(waveform), HubertLayer(checkpoint, 1)(waveform)], dim=-1
    )
    torch.testing.assert_close(several(waveform), expected)


def test_bfloat16_is_close_and_has_another_fingerprint(checkpoint: Path) -> None:
    waveform = 0.1 * torch.randn(1, 16_000)
    exact = HubertLayer(checkpoint, 2)
    fast = HubertLayer(checkpoint, 2, precision="bfloat16")
    expected = exact(waveform)
    found = fast(waveform)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().mean() < 0.02 * expected.std()
    assert "precision" not in exact.fingerprint()
    assert fast.fingerprint()["precision"] == "bfloat16"


def test_an_hour_needs_little_more_memory_than_its_frames(tmp_path: Path) -> None:
    """Measured in a process of its own, because a peak is of a whole process."""
    torch.manual_seed(0)
    save_model(tmp_path, Hubert(tiny(conv_dim=[8] * 7)))
    code = (
        "import sys, resource, torch\n"
        "from hubert_pretrain.features.hubert_layer import HubertLayer\n"
        "torch.set_num_threads(1)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "features = HubertLayer(sys.argv[1], 1, chunk_seconds=20, context_seconds=2)\n"
        "features(torch.randn(1, 16000 * 20))\n"
        "waveform = torch.randn(3600 * 16000)\n"
        "before = peak()\n"
        "frames = features.extract_packed([waveform])\n"
        "assert len(frames) == features.grid.num_frames(len(waveform))\n"
        "print(peak() - before)\n"
    )
    megabytes = float(
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        ).stdout
    )
    # Frames: 180,000 x 32 floats = 23 MB; conv features: 6 MB, twice while pieces are joined.
    # Whole, the first conv layer needs 368 MB.
    assert megabytes < 150
