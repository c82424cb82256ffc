"""Adapters and CTC heads per language: exchanged in place, refused when they do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.checkpoint import load_model, save_model, save_tensors
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.language_adapters import (
    adapters_only,
    language_of,
    languages,
    save_language,
    with_new_adapters,
)

POST_NORM = HubertConfig(
    conv_dim=[16] * 7,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    adapter_attn_dim=8,
)
PRE_NORM = dataclasses.replace(POST_NORM, do_stable_layer_norm=True, feat_extract_norm="layer")
VOCABULARIES = {"deu": ["<pad>", "|", "Ä", "B"], "eng": ["<pad>", "|", "A"]}


def network(config: HubertConfig) -> Hubert:
    torch.manual_seed(0)
    return Hubert(config).eval()


def teach(model: Hubert, folder: Path, name: str, seed: int) -> torch.Tensor:
    """Gives the network random adapters, saves them as a language and the network as a checkpoint
    in this language, and returns the logits of a fixed waveform.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in model.context_encoder.layers:
            for parameter in layer.adapter.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    head = CTCHead(32, len(VOCABULARIES[name]), dropout=0.1).eval()
    language = language_of(name, model, head, {"vocabulary": VOCABULARIES[name]})
    save_language(folder, language)
    save_model(folder, model, head=head, extra=language.extra)
    return head(model(waveform()).last)


def waveform() -> torch.Tensor:
    return torch.randn(1, 8_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
def test_languages_are_exchanged_and_the_rest_stays(config: HubertConfig, tmp_path: Path) -> None:
    model = network(config)
    expected = {name: teach(model, tmp_path, name, seed) for seed, name in enumerate(VOCABULARIES)}
    shared = {
        name: tensor for name, tensor in model.state_dict().items() if ".adapter." not in name
    }
    assert languages(tmp_path) == ["deu", "eng"]
    for name in ("deu", "eng", "deu"):
        loaded = load_checkpoint(tmp_path, target_lang=name)
        head = loaded.build_head()
        assert torch.equal(head.logits(loaded.model(waveform())), expected[name])
        assert loaded.extra == {"vocabulary": VOCABULARIES[name], "target_lang": name}
        assert head.dropout.p == 0.1
        stored = loaded.model.state_dict()
        assert all(torch.equal(stored[name], tensor) for name, tensor in shared.items())
    assert load_checkpoint(tmp_path).extra["target_lang"] == "eng"  # that of model.safetensors


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
def test_new_adapters_change_nothing(config: HubertConfig) -> None:
    plain = network(dataclasses.replace(config, adapter_attn_dim=None))
    adapted = with_new_adapters(plain, 5, seed=1)
    assert adapted.config.adapter_attn_dim == 5
    assert torch.equal(adapted(waveform()).last, plain(waveform()).last)
    again = with_new_adapters(plain, 5, seed=1).state_dict()
    assert all(torch.equal(again[name], each) for name, each in adapted.state_dict().items())


def test_a_checkpoint_keeps_its_adapters(tmp_path: Path) -> None:
    model = network(PRE_NORM)
    teach(model, tmp_path, "deu", 0)
    assert torch.equal(load_model(tmp_path).model(waveform()).last, model(waveform()).last)


def test_a_new_language_is_trained_without_touching_the_network() -> None:
    model = network(POST_NORM).train()
    adapters_only(model)
    model(waveform()).last.square().sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in model.named_parameters() if ".adapter." in name}
    with pytest.raises(ConfigError, match="no adapters"):
        adapters_only(network(dataclasses.replace(POST_NORM, adapter_attn_dim=None)))


def test_a_language_that_is_not_there(tmp_path: Path) -> None:
    teach(network(POST_NORM), tmp_path, "deu", 0)
    with pytest.raises(
        ArtefactError,
        match=r"adapter.due.safetensors: no such language .did you mean 'deu'.*; "
        "set target_lang to one of deu",
    ):
        load_checkpoint(tmp_path, target_lang="due")
    with pytest.raises(ConfigError, match="cannot name a language"):
        load_checkpoint(tmp_path, target_lang="../deu")
    save_model(tmp_path / "plain", network(PRE_NORM))
    with pytest.raises(ArtefactError, match="target_lang=deu, but the checkpoint has no languages"):
        load_checkpoint(tmp_path / "plain", target_lang="deu")
    (tmp_path / "adapter.deu.safetensors").unlink()
    assert load_checkpoint(tmp_path, target_lang="deu").extra["target_lang"] == "deu"
    with pytest.raises(ArtefactError, match="the checkpoint holds the language 'deu' alone"):
        load_checkpoint(tmp_path, target_lang="eng")


def test_a_language_of_another_network_is_refused(tmp_path: Path) -> None:
    teach(network(POST_NORM), tmp_path, "deu", 0)
    teach(network(dataclasses.replace(POST_NORM, adapter_attn_dim=6)), tmp_path, "eng", 1)
    with pytest.raises(
        ArtefactError,
        match=r"adapter.deu.safetensors: does not fit .* shape \(8, 32\) where \(6, 32\)",
    ):
        load_checkpoint(tmp_path, target_lang="deu")


def test_a_file_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 symbols for a head of 3 rows"):
        language_of("deu", network(POST_NORM), CTCHead(32, 3), {"vocabulary": ["<pad>", "|"]})
    teach(network(POST_NORM), tmp_path, "eng", 0)
    save_tensors(tmp_path / "adapter.deu.safetensors", {"hubert.x": torch.zeros(1)})
    with pytest.raises(ArtefactError, match=r"adapter.deu.safetensors: has no head and vocabulary"):
        load_checkpoint(tmp_path, target_lang="deu")
