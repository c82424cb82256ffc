"""Every export format, written and read again: each kind of checkpoint, bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.interop.compare import count_equal_tensors
from hubert_pretrain.interop.fairseq_writer import export_fairseq
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.registry import FORMATS, export_format
from hubert_pretrain.interop.torchaudio_writer import compare_torchaudio, export_torchaudio
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import ClassificationHead, CodebookHead, CTCHead, SoftmaxHead
from hubert_pretrain.model.hubert import Hubert

VOCABULARY = ["<pad>", "<unk>", "|", *"'ABC"]
GROUP = HubertConfig(
    conv_dim=[16] * 7,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=32,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
    projection_size=12,
)
LAYER = dataclasses.replace(
    GROUP,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_bias=True,
    normalize_waveform=True,
)
HEADS: dict[str, Any] = {
    "pretrain": lambda: CodebookHead(24, 12, 20, 0.2),
    "two codebooks": lambda: CodebookHead(24, 12, [20, 7]),
    "tied codebooks": lambda: CodebookHead(24, 12, [20, 7], tie_projections=True),
    "softmax": lambda: SoftmaxHead(24, 20),
    "bare": lambda: None,
    "ctc": lambda: CTCHead(24, len(VOCABULARY), dropout=0.1),
    "classify": lambda: ClassificationHead(24, 3, 8),
    "weighted": lambda: ClassificationHead(24, 3, 8, n_layers=2, weighted_layers=True),
}
REFUSED = {("fairseq", "classify"), ("fairseq", "weighted"), ("fairseq", "softmax")}


def checkpoint(folder: Path, config: HubertConfig, kind: str, **extra: Any) -> LoadedModel:
    torch.manual_seed(0)
    model = Hubert(config)
    head = HEADS[kind]()
    for module in (model, head) if head else (model,):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(
        folder,
        model,
        head=head,
        extra={"vocabulary": VOCABULARY, "classes": ["a", "b", "c"], "step": 7, **extra},
    )
    return load_model(folder)


@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.readable])
@pytest.mark.parametrize("kind", list(HEADS))
@pytest.mark.parametrize("config", [GROUP, LAYER], ids=["group", "layer"])
def test_out_and_in_is_bit_equal(
    tmp_path: Path, config: HubertConfig, kind: str, form: str
) -> None:
    loaded = checkpoint(tmp_path / "ours", config, kind)
    path = tmp_path / "theirs" / FORMATS[form].file
    if (form, kind) in REFUSED:
        with pytest.raises(ArtefactError, match="fairseq"):
            FORMATS[form].export(path, loaded)
        return
    FORMATS[form].export(path, loaded)
    report, tensors = FORMATS[form].check(path, loaded)
    assert report.max_difference < 1e-5
    assert tensors == len(loaded.model.state_dict()) + len(loaded.head_state)
    back = load_checkpoint(path)
    assert back.extra == loaded.extra
    assert back.report is not None
    assert (back.report.missing, back.report.notes) == ([], [])
    # Without a pretraining head fairseq's files hold a projection of zeros.
    assert set(back.report.unexpected) <= {"final_proj.weight", "final_proj.bias"}
    again = tmp_path / "again" / FORMATS[form].file  # import -> export -> import
    FORMATS[form].export(again, back)
    count_equal_tensors(path, back, load_checkpoint(again))


def test_a_difference_is_found_and_named(tmp_path: Path) -> None:
    loaded = checkpoint(tmp_path / "ours", GROUP, "ctc")
    export_torchaudio(tmp_path / "hubert.pt", loaded)
    with torch.no_grad():
        loaded.model.context_encoder.layers[1].feed_forward.down.weight[0, 0] += 0.5
    with pytest.raises(
        ArtefactError, match=r"hubert\.pt: layer 2 of the exported model differs by"
    ):
        compare_torchaudio(tmp_path / "hubert.pt", loaded)
    with pytest.raises(
        ArtefactError,
        match=r"hubert\.context_encoder\.layers\.1\.feed_forward\.down\.weight of the export, "
        "read again, differs",
    ):
        count_equal_tensors("x", loaded, load_checkpoint(tmp_path / "hubert.pt"))
    back = load_checkpoint(tmp_path / "hubert.pt", layerdrop=0.5)
    with torch.no_grad():
        loaded.model.context_encoder.layers[1].feed_forward.down.weight[0, 0] = (
            back.model.context_encoder.layers[1].feed_forward.down.weight[0, 0]
        )
    with pytest.raises(
        ArtefactError, match=r"layerdrop of the export, read again, is 0.5, expected 0.05"
    ):
        count_equal_tensors("x", loaded, back)


@pytest.mark.parametrize(
    ("change", "form"),
    [
        ({"feat_extract_activation": "relu"}, "fairseq"),
        ({"layer_norm_eps": 1e-3}, "s3prl"),
        ({"feat_proj_layer_norm": False}, "torchaudio"),
        ({"hidden_act": "relu"}, "torchaudio"),
        ({"hidden_act": "selu"}, "fairseq"),
        ({"conv_pos_batch_norm": True}, "torchaudio"),
        ({"adapter_attn_dim": 4}, "fairseq"),
        ({"adapter_attn_dim": 4, "hidden_act": "gelu_new"}, "fairseq"),
    ],
)
def test_a_network_that_a_format_cannot_hold_is_refused(
    tmp_path: Path, change: dict[str, Any], form: str
) -> None:
    save_model(tmp_path / "ours", Hubert(dataclasses.replace(GROUP, **change)))
    with pytest.raises(ArtefactError, match=next(iter(change))):
        FORMATS[form].export(tmp_path / "x" / FORMATS[form].file, load_model(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("change", "form"),
    [({"conv_pos_batch_norm": True}, "fairseq"), ({"hidden_act": "gelu_new"}, "fairseq")],
)
def test_variants_that_fairseq_can_hold(tmp_path: Path, change: dict[str, Any], form: str) -> None:
    loaded = checkpoint(tmp_path / "ours", dataclasses.replace(GROUP, **change), "pretrain")
    FORMATS[form].export(tmp_path / "x.pt", loaded)
    FORMATS[form].check(tmp_path / "x.pt", loaded)


def test_equal_widths_have_no_projection_in_fairseq(tmp_path: Path) -> None:
    """fairseq leaves `post_extract_proj` out there. It is read as the identity, and a network is
    only written while its projection is the identity.
    """
    loaded = checkpoint(
        tmp_path / "ours", dataclasses.replace(GROUP, conv_dim=[24] * 7), "pretrain"
    )
    with pytest.raises(ArtefactError, match="no projection between equal widths"):
        export_fairseq(tmp_path / "x.pt", loaded)
    with torch.no_grad():
        loaded.model.projection.linear.weight.copy_(torch.eye(24))
        loaded.model.projection.linear.bias.zero_()
    export_fairseq(tmp_path / "x.pt", loaded)
    FORMATS["fairseq"].check(tmp_path / "x.pt", loaded)


def test_a_torchaudio_file_without_its_side_file_needs_overrides(tmp_path: Path) -> None:
    loaded = checkpoint(tmp_path / "ours", LAYER, "ctc")
    export_torchaudio(tmp_path / "hubert.pt", loaded)
    (tmp_path / "hubert.side.safetensors").unlink()
    with pytest.raises(
        ArtefactError,
        match=r"hubert\.pt: a torchaudio file does not tell num_attention_heads"
        ".*give num_attention_heads=",
    ):
        load_checkpoint(tmp_path / "hubert.pt")
    back = load_checkpoint(tmp_path / "hubert.pt", num_attention_heads=3)
    assert back.report is not None
    assert back.report.missing == ["mask_generator.mask_embedding"]
    assert any("do_stable_layer_norm" in note for note in back.report.notes)
    assert torch.equal(back.head_state["linear.weight"], loaded.head_state["linear.weight"])
    lines = [f"{symbol} 1\n" for symbol in "|'ABCD"]  # 7 symbols with the blank
    (tmp_path / "dict.ltr.txt").write_text("".join(lines))
    named = load_checkpoint(
        tmp_path / "hubert.pt", num_attention_heads=3, dictionary=tmp_path / "dict.ltr.txt"
    )
    assert named.extra["vocabulary"] == ["<pad>", *"|'ABCD"]


def test_a_format_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="did you mean 'torchaudio'"):
        export_format("torch_audio")


def test_our_config_beside_an_export_is_plain_json(tmp_path: Path) -> None:
    loaded = checkpoint(tmp_path / "ours", GROUP, "pretrain")
    FORMATS["huggingface"].export(tmp_path / "hf", loaded)
    assert json.loads((tmp_path / "hf" / "hubert_pretrain.json").read_text())["extra"]["step"] == 7
