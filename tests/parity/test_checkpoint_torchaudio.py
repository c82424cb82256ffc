"""torchaudio's own models: their state dicts are read, all outputs are equal, and exports load into
torchaudio bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.torchaudio_reader import load_torchaudio

torchaudio = pytest.importorskip(
    "torchaudio",
    reason="torchaudio does not import here",
    exc_type=(ImportError, OSError, RuntimeError),
)

LAYERS = [(24, 10, 5), *[(24, 3, 2)] * 4, *[(32, 2, 2)] * 2]
GROUP: dict[str, Any] = {
    **{
        "extractor_mode": "group_norm",
        "extractor_conv_layer_config": LAYERS,
        "extractor_conv_bias": False,
        "encoder_embed_dim": 48,
    },
    **{
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 3,
    },
    **{
        "encoder_num_heads": 4,
        "encoder_attention_dropout": 0.1,
        "encoder_ff_interm_features": 64,
        "encoder_ff_interm_dropout": 0.0,
    },
    **{"encoder_dropout": 0.1, "encoder_layer_norm_first": False, "encoder_layer_drop": 0.05},
}
LAYER = {
    **GROUP,
    "extractor_mode": "layer_norm",
    "extractor_conv_bias": True,
    "encoder_layer_norm_first": True,
}
MASK: dict[str, Any] = {
    **{
        "mask_prob": 0.8,
        "mask_selection": "static",
        "mask_other": 0.0,
        "mask_length": 10,
        "no_mask_overlap": False,
        "mask_min_space": 1,
    },
    **{
        "mask_channel_prob": 0.0,
        "mask_channel_selection": "static",
        "mask_channel_other": 0.0,
        "mask_channel_length": 10,
    },
    **{
        "no_mask_channel_overlap": False,
        "mask_channel_min_space": 1,
        "skip_masked": False,
        "skip_nomask": False,
    },
    **{"num_classes": 20, "final_dim": 16, "feature_grad_mult": 0.1},
}


def perturbed(model: torch.nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@pytest.fixture(params=[GROUP, LAYER], ids=["group", "layer"])
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    torch.manual_seed(0)
    return request.param


def assert_equal_outputs(loaded: Any, theirs: Any) -> None:
    waveform = 0.3 * torch.randn(2, 9_000)
    with torch.no_grad():
        states, _ = theirs.extract_features(waveform)
        last = theirs.encoder(theirs.feature_extractor(waveform, None)[0])
        ours = loaded.model(waveform, hidden_states=True)
    for layer, (a, b) in enumerate(zip(ours.hidden_states, states, strict=True), start=1):
        assert (a - b).abs().max() < 1e-5, layer
    assert (ours.last - last).abs().max() < 1e-5


@pytest.mark.parametrize("wrapped", [False, True])
def test_encoder(tmp_path: Path, variant: dict[str, Any], wrapped: bool) -> None:
    theirs = perturbed(torchaudio.models.wav2vec2_model(**variant, aux_num_out=None))
    state = theirs.state_dict()
    if (
        wrapped
    ):  # a checkpoint of its HuBERT recipe's Lightning module; and names from before PyTorch 2.1
        new = "parametrizations.weight.original"
        old = "weight_"
        state = {
            f"model.wav2vec2.{name}".replace(f"{new}0", f"{old}g").replace(
                f"{new}1", f"{old}v"
            ): value
            for name, value in state.items()
        }
        state = {"state_dict": state, "epoch": 3}
    torch.save(state, tmp_path / "x.pt")
    loaded = load_checkpoint(tmp_path / "x.pt", num_attention_heads=4)
    assert loaded.report is not None
    assert loaded.report.missing == ["mask_generator.mask_embedding"]
    assert len(loaded.report.taken) == len(theirs.state_dict())
    assert not loaded.head_state
    assert_equal_outputs(loaded, theirs)


def test_ctc(tmp_path: Path, variant: dict[str, Any]) -> None:
    theirs = perturbed(torchaudio.models.wav2vec2_model(**variant, aux_num_out=5))
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    (tmp_path / "dict.ltr.txt").write_text("| 9\nE 5\nT 4\nA 3\n")
    loaded = load_checkpoint(
        tmp_path / "x.pt", num_attention_heads=4, dictionary=tmp_path / "dict.ltr.txt"
    )
    assert loaded.extra["vocabulary"] == ["<pad>", "|", "E", "T", "A"]
    waveform = 0.3 * torch.randn(1, 9_000)
    with torch.no_grad():
        assert (
            loaded.build_head()(loaded.model(waveform).last) - theirs(waveform)[0]
        ).abs().max() < 1e-5


def test_pretraining_with_its_logits(tmp_path: Path, variant: dict[str, Any]) -> None:
    theirs = perturbed(torchaudio.models.hubert_pretrain_model(**variant, **MASK))
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    loaded = load_checkpoint(tmp_path / "x.pt", num_attention_heads=4)
    assert loaded.report is not None
    assert not loaded.report.missing
    assert torch.equal(loaded.model.mask_embedding, theirs.mask_generator.mask_embedding)
    assert_equal_outputs(loaded, theirs.wav2vec2)
    waveform = 0.3 * torch.randn(2, 9_000)
    mask = torch.rand(2, 27) < 0.5
    labels = torch.randint(20, (2, 27))
    with torch.no_grad():
        theirs.mask_generator.forward = lambda x, _: (
            torch.where(mask[..., None], theirs.mask_generator.mask_embedding, x),
            mask,
        )
        masked, _, penalty = theirs(waveform, labels)
        output = loaded.model(waveform, mask=mask)
        logits = loaded.build_head()(output.last[mask])
    positive = labels[mask]
    assert (
        logits.gather(1, positive[:, None])[:, 0] - masked[:, 0]
    ).abs().max() < 1e-4  # theirs puts the target's first
    negatives = masked[:, 1:].clone()
    negatives.scatter_(1, positive[:, None], masked[:, :1])
    assert (logits - negatives).abs().max() < 1e-4
    assert abs(float(output.feature_penalty) - float(penalty)) < 1e-6


def test_published_sizes_need_no_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes of hubert_base without its memory: all other fields follow from width, kernels and
    depth."""
    monkeypatch.setattr("hubert_pretrain.interop.torchaudio_reader.assemble", lambda source: source)
    with torch.device("meta"):
        content = torchaudio.models.hubert_base().state_dict()
    config = load_torchaudio(tmp_path / "x.pt", content=content).config
    assert (config.num_hidden_layers, config.num_attention_heads, config.conv_stride) == (
        12,
        12,
        [5, 2, 2, 2, 2, 2, 2],
    )
    assert (
        config.intermediate_size,
        config.do_stable_layer_norm,
        config.num_conv_pos_embedding_groups,
    ) == (3072, False, 16)


@pytest.mark.parametrize("kind", ["encoder", "asr", "pretraining"])
def test_an_export_loads_into_torchaudio_bit_for_bit(
    tmp_path: Path, variant: dict[str, Any], kind: str
) -> None:
    from hubert_pretrain.interop.torchaudio_writer import export_torchaudio

    if kind == "pretraining":
        theirs = perturbed(torchaudio.models.hubert_pretrain_model(**variant, **MASK))
    else:
        theirs = perturbed(
            torchaudio.models.wav2vec2_model(**variant, aux_num_out=5 if kind == "asr" else None)
        )
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    loaded = load_checkpoint(tmp_path / "x.pt", num_attention_heads=4)
    export_torchaudio(tmp_path / "y.pt", loaded)
    state = torch.load(tmp_path / "y.pt", weights_only=True)
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())
    from safetensors import safe_open

    with safe_open(tmp_path / "y.side.safetensors", "pt") as file:
        note = json.loads(file.metadata()["hubert_pretrain"])
    if kind != "pretraining":
        rebuilt = torchaudio.models.wav2vec2_model(
            **note["torchaudio"]
        )  # the note says how to build the model for it
        rebuilt.load_state_dict(state)
