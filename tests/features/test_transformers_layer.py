"""Random tiny encoders saved by `transformers`, and what `transformers` itself says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.features.extractor import PackedExtractor
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.features.transformers_layer import TransformersLayer

transformers = pytest.importorskip("transformers")
SIZES = {
    "conv_dim": [16] * 7,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
POSITIONS = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
LARGE_LIKE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS = ["Hubert", "Wav2Vec2", "WavLM"]


def saved(folder: Path, kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **POSITIONS, **changes)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(
    params=[(kind, form) for kind in KINDS for form in ("base", "large")],
    ids=lambda each: "-".join(each),
)
def encoder(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Any]:
    kind, form = request.param
    return tmp_path, saved(tmp_path, kind, **(LARGE_LIKE if form == "large" else {}))


def blocks(model: Any, waveform: torch.Tensor) -> list[torch.Tensor]:
    """The return value of each block, by hooks on the whole model of `transformers`."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, output: found.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in model.encoder.layers
    ]
    with torch.no_grad():
        states = model(waveform, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(states[1], found[0])  # below the last layer both conventions agree
    return found


def test_it_is_the_block_output(encoder: tuple[Path, Any]) -> None:
    folder, model = encoder
    waveform = 0.1 * torch.randn(2, 16_000)
    normalised = waveform
    if model.config.feat_extract_norm == "layer":
        normalised = torch.nn.functional.layer_norm(waveform, (16_000,), eps=1e-5)
    expected = blocks(model, normalised)
    for layer in (1, 2, 3):
        features = TransformersLayer(folder, layer)
        torch.testing.assert_close(features(waveform), expected[layer - 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        TransformersLayer(folder, [3, 1])(waveform),
        torch.cat([expected[2], expected[0]], dim=-1),
        atol=1e-5,
        rtol=0,
    )


def test_a_batch_of_any_lengths_equals_its_utterances(encoder: tuple[Path, Any]) -> None:
    folder, _ = encoder
    features = TransformersLayer(folder, 2)
    waveforms = [0.1 * torch.randn(length) for length in (16_000, 15_500, 399, 12_345, 16_000)]
    alone = torch.cat([features(waveform[None])[0] for waveform in waveforms])
    torch.testing.assert_close(features.extract_packed(waveforms), alone, atol=1e-5, rtol=1e-4)


def test_long_recordings_lose_no_frame(encoder: tuple[Path, Any]) -> None:
    folder, _ = encoder
    waveform = 0.1 * torch.randn(1, 16_000 * 7 + 99) * torch.linspace(0.2, 2.0, 16_000 * 7 + 99)
    expected = TransformersLayer(folder, 1)(waveform)
    found = TransformersLayer(folder, 1, chunk_seconds=2.5, context_seconds=0.6)(waveform)
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 0.1 * (expected[:, 1:] - expected[:, :-1]).abs().mean()


def test_hubert_is_the_same_both_ways(tmp_path: Path) -> None:
    saved(tmp_path, "Hubert", **LARGE_LIKE)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    waveforms = [0.1 * torch.randn(length) for length in (12_000, 11_500)]
    expected = TransformersLayer(tmp_path, 2).extract_packed(waveforms)
    torch.testing.assert_close(
        HubertLayer(tmp_path, 2).extract_packed(waveforms), expected, atol=1e-5, rtol=1e-4
    )


def test_the_preprocessor_says_whether_to_normalise(tmp_path: Path) -> None:
    saved(tmp_path, "Wav2Vec2")
    assert not TransformersLayer(tmp_path, 1).normalize_waveform
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    assert TransformersLayer(tmp_path, 1).normalize_waveform
    assert not TransformersLayer(tmp_path, 1, normalize_waveform=False).normalize_waveform


def test_fingerprint(tmp_path: Path) -> None:
    saved(tmp_path, "WavLM")
    features = TransformersLayer(tmp_path, 2)
    assert isinstance(features, PackedExtractor)
    print_ = features.fingerprint()
    assert json.loads(json.dumps(print_)) == print_
    assert print_["model_type"] == "wavlm"
    assert print_ != TransformersLayer(tmp_path, 1).fingerprint()
    assert str(tmp_path) not in json.dumps(print_)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ArtefactError, match=r"config\.json: missing or damaged, expected a folder of transformers"
    ):
        TransformersLayer(tmp_path, 1)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ArtefactError, match=r"model_type is 'bert', expected .* one of hubert, wav2vec2, wavlm"
    ):
        TransformersLayer(tmp_path, 1)
    saved(tmp_path, "Hubert")
    with pytest.raises(ConfigError, match=r"features\.layer=4, but the model has layers 1 to 3"):
        TransformersLayer(tmp_path, 4)
    with pytest.raises(ConfigError, match="precision='float16': expected one of float32, bfloat16"):
        TransformersLayer(tmp_path, 1, precision="float16")
    (tmp_path / "model.safetensors").write_bytes(
        (tmp_path / "model.safetensors").read_bytes()[:5000]
    )
    with pytest.raises(ArtefactError, match=r"model\.safetensors: cannot be read as safetensors"):
        TransformersLayer(tmp_path, 1)
    with pytest.raises(ArtefactError, match=r"`hf download facebook/wav2vec2-base "):
        TransformersLayer("facebook/wav2vec2-base", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bin_file(tmp_path: Path, kind: str) -> None:
    """As published before safetensors: a pickle, and the old names of normalised weights."""
    model = saved(tmp_path, kind, **LARGE_LIKE)
    (tmp_path / "model.safetensors").unlink()
    state = {}
    for name, tensor in model.state_dict().items():
        old = name.replace("parametrizations.weight.original0", "weight_g")
        state[old.replace("parametrizations.weight.original1", "weight_v")] = tensor
    torch.save(state, tmp_path / "pytorch_model.bin")
    waveform = 0.1 * torch.randn(1, 16_000)
    features = TransformersLayer(tmp_path, 2, normalize_waveform=False)(waveform)
    torch.testing.assert_close(features, blocks(model, waveform)[1], atol=1e-5, rtol=1e-5)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved(tmp_path, "Wav2Vec2")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layers.1.feed_forward.output_dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ArtefactError,
        match=r"1 weights are missing, "
        r"encoder\.layers\.1\.feed_forward\.output_dense\.weight first",
    ):
        TransformersLayer(tmp_path, 1)
