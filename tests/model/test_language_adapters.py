"""Adapters and CTC heads per language: exchanged in place, refused when they do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.language_adapters import (
    Language,
    adapters_only,
    languages,
    load_language,
    save_language,
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
    """Gives the network random adapters, saves them as a language, and returns the logits of a
    fixed waveform.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in model.context_encoder.layers:
            for parameter in layer.adapter.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    head = CTCHead(32, len(VOCABULARIES[name]), dropout=0.1).eval()
    save_language(folder, Language(name, head, VOCABULARIES[name]), model)
    return head(model(waveform()).last)


def waveform() -> torch.Tensor:
    return torch.randn(1, 8_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
def test_languages_are_exchanged_in_place_and_back(config: HubertConfig, tmp_path: Path) -> None:
    model = network(config)
    expected = {name: teach(model, tmp_path, name, seed) for seed, name in enumerate(VOCABULARIES)}
    shared = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if ".adapter." not in name
    }
    assert languages(tmp_path) == ["deu", "eng"]
    for name in ("deu", "eng", "deu"):
        language = load_language(tmp_path, name, model)
        assert torch.equal(language.head(model(waveform()).last), expected[name])
        assert (language.vocabulary, language.head.dropout.p) == (VOCABULARIES[name], 0.1)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in shared.items())


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
def test_new_adapters_change_nothing(config: HubertConfig) -> None:
    plain = network(dataclasses.replace(config, adapter_attn_dim=None))
    adapted = network(config)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(adapted(waveform()).last, plain(waveform()).last)


def test_a_checkpoint_keeps_its_adapters(tmp_path: Path) -> None:
    model = network(PRE_NORM)
    teach(model, tmp_path, "deu", 0)
    save_model(tmp_path, model)
    assert torch.equal(load_model(tmp_path).model(waveform()).last, model(waveform()).last)


def test_a_new_language_is_trained_without_touching_the_network() -> None:
    model = network(POST_NORM).train()
    adapters_only(model)
    model(waveform()).last.square().sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in model.named_parameters() if ".adapter." in name}


def test_a_language_that_is_not_there(tmp_path: Path) -> None:
    model = network(POST_NORM)
    teach(model, tmp_path, "deu", 0)
    with pytest.raises(
        ArtefactError,
        match=r"adapter.due.safetensors: no such language .did you mean 'deu'.*; "
        "the folder has deu",
    ):
        load_language(tmp_path, "due", model)
    with pytest.raises(ConfigError, match="cannot name a language"):
        load_language(tmp_path, "../deu", model)


def test_a_language_of_another_network_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    teach(network(POST_NORM), tmp_path, "deu", 0)
    model = network(dataclasses.replace(POST_NORM, adapter_attn_dim=6))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ArtefactError,
        match=r"adapter.deu.safetensors: does not fit .* shape \(8, 32\) where \(6, 32\)",
    ):
        load_language(tmp_path, "deu", model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    with pytest.raises(ConfigError, match="no adapters"):
        load_language(
            tmp_path, "deu", network(dataclasses.replace(POST_NORM, adapter_attn_dim=None))
        )


def test_a_vocabulary_must_fit_its_head(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 symbols for a head of 3 rows"):
        save_language(tmp_path, Language("deu", CTCHead(32, 3), ["<pad>", "|"]), network(POST_NORM))
