"""Variants with parts of their own, exported: `transformers` loads them and computes the same; what
it cannot is refused.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, Wav2Vec2ForCTC

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.compare import compare
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.registry import FORMATS, _languages_left_out, export_all
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.language_adapters import language_of, save_language

SMALL = HubertConfig(
    conv_dim=[16] * 7,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
VOCABULARY = ["<pad>", "|", "A", "B"]
LANGUAGES = {"deu": ["<pad>", "|", "Ä", "B"], "eng": ["<pad>", "|", "A"]}


def checkpoint(folder: Path, **changes: Any) -> LoadedModel:
    """A saved CTC model in which every tensor is random."""
    torch.manual_seed(0)
    model = Hubert(dataclasses.replace(SMALL, **changes))
    head = CTCHead(32, len(VOCABULARY))
    with torch.no_grad():
        for tensor in [
            *model.parameters(),
            *(buffer for buffer in model.buffers() if buffer.is_floating_point()),
        ]:
            tensor.add_(torch.rand_like(tensor) * 0.2)
    save_model(folder, model, head=head, extra={"vocabulary": VOCABULARY})
    return load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_pos_batch_norm": True},
        {"do_stable_layer_norm": True, "adapter_attn_dim": 8},
        {"hidden_act": "silu", "feat_extract_activation": "relu", "initializer_range": 0.05},
        {
            "conv_dim": [16, 16, 16],
            "conv_kernel": [16, 5, 3],
            "conv_stride": [8, 5, 2],
            "conv_bias": True,
            "feat_proj_layer_norm": False,
        },
    ],
    ids=["batch norm in positions", "adapters", "activations", "grid"],
)
def test_transformers_computes_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    loaded = checkpoint(tmp_path / "ours", **changes)
    export_huggingface(tmp_path / "theirs", loaded)
    assert max(compare(tmp_path / "theirs", loaded).differences.values()) < 1e-5
    stored = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert {name: stored[name] for name in changes} == changes


@pytest.fixture
def two_languages(tmp_path: Path) -> Path:
    """A checkpoint with German and English, whose heads have different sizes."""
    config = dataclasses.replace(SMALL, do_stable_layer_norm=True, adapter_attn_dim=8)
    torch.manual_seed(0)
    model = Hubert(config).eval()
    for name, symbols in LANGUAGES.items():
        for layer in model.context_encoder.layers:
            torch.nn.init.normal_(layer.adapter.up.weight)
        head = CTCHead(32, len(symbols)).eval()
        extra = {"vocabulary": symbols, "text_rules": {"case": "upper"}}
        language = language_of(name, model, head, extra)
        save_language(tmp_path / "ours", language)
    save_model(tmp_path / "ours", model, head=head, extra=language.extra)
    return tmp_path / "ours"


def test_transformers_exchanges_the_languages_of_an_export(two_languages: Path) -> None:
    """Wav2Vec2ForCTC loads each by `target_lang` and by `load_adapter`, with its vocabulary, and
    computes the logits of our network; we read the same from the folder again.
    """
    folder = two_languages.with_name("theirs")
    form = FORMATS["huggingface"]
    loaded = load_checkpoint(two_languages)
    form.write(folder, loaded)
    report, _ = form.check(folder, loaded)
    assert {"logits", "logits, deu", "logits, eng"} < report.differences.keys()
    assert report.max_difference < 1e-5
    waveform = torch.randn(1, 8000)
    found = {}
    model = Wav2Vec2ForCTC.from_pretrained(
        folder, target_lang="deu", ignore_mismatched_sizes=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, target_lang="deu")
    for name, symbols in LANGUAGES.items():
        if name != "deu":
            model.load_adapter(name)
            tokenizer.set_target_lang(name)
        assert tokenizer.get_vocab() == {symbol: row for row, symbol in enumerate(symbols)}
        for source in (two_languages, folder):
            ours = load_checkpoint(source, target_lang=name)
            assert ours.extra["vocabulary"] == symbols
            assert ours.extra["text_rules"] == {"case": "upper"}
            with torch.no_grad():
                found[name] = model(waveform).logits
                expected = ours.build_head().logits(ours.model(waveform))
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)
    assert found["deu"].shape != found["eng"].shape


def test_a_language_that_transformers_trained_is_read(two_languages: Path) -> None:
    """Its file has no settings of a head, and its vocabulary stands in vocab.json."""
    folder = two_languages.with_name("theirs")
    export_huggingface(folder, load_checkpoint(two_languages))
    model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    model.init_adapter_layers()
    model.lm_head = torch.nn.Linear(32, 3)
    weights = {name: each.detach().contiguous() for name, each in model._get_adapters().items()}
    save_file(weights, folder / "adapter.fra.safetensors", metadata={"format": "pt"})
    vocabulary = json.loads((folder / "vocab.json").read_text())
    symbols = {"<pad>": 0, "|": 1, "É": 2}
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "fra": symbols}))
    ours = load_checkpoint(folder, target_lang="fra")
    waveform = torch.randn(1, 8000)
    with torch.no_grad():
        expected = model(waveform).logits
        torch.testing.assert_close(ours.build_head().logits(ours.model(waveform)), expected)
    assert ours.extra["vocabulary"] == list(symbols)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ArtefactError, match=r"vocab.json: has no vocabulary of 'fra'"):
        load_checkpoint(folder, target_lang="fra")


def test_one_language_is_exported_alone(two_languages: Path, tmp_path: Path) -> None:
    sources = {"finetune/deu": two_languages}
    made = export_all("huggingface", sources, tmp_path / "one", target_lang="eng")
    (folder,) = (path.parent for path in (tmp_path / "one").rglob("config.json"))
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["HubertForCTC"]
    assert json.loads((folder / "vocab.json").read_text()) == {"<pad>": 0, "|": 1, "A": 2}
    assert not list(folder.glob("adapter.*"))
    assert made["finetune/deu"].report.max_difference < 1e-5
    loaded = load_checkpoint(two_languages)
    assert _languages_left_out(loaded, ["huggingface", "torch"]) == [
        "torch: holds one language, eng of deu, eng (export.target_lang chooses)"
    ]


def test_adapters_that_transformers_would_ignore_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"do_stable_layer_norm=false: .* post-norm model"):
        export_huggingface(tmp_path / "theirs", checkpoint(tmp_path / "ours", adapter_attn_dim=8))
