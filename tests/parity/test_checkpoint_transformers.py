"""Folders written by `transformers`, of every class: read without it, with equal outputs, and
written again with the same fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.registry import FORMATS
from hubert_pretrain.interop.transformers_writer import import_transformers
from hubert_pretrain.model.checkpoint import load_tensors, save_model
from hubert_pretrain.model.spec_augment import SpecAugment

SIZES: dict[str, Any] = {
    **{
        "conv_dim": [24] * 7,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    **{
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "classifier_proj_size": 12,
        "vocab_size": 6,
        "num_labels": 3,
    },
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "large": LARGE,
    "batch norm": {"conv_pos_batch_norm": True},
    "no projection norm": {"feat_proj_layer_norm": False},
    "adapters": {**LARGE, "adapter_attn_dim": 6},
    "no masks": {"mask_time_prob": 0.0, "mask_feature_prob": 0.0},
}


def written(folder: Path, architecture: str, **settings: Any) -> Any:
    """A random model of `transformers`, saved by it."""
    torch.manual_seed(0)
    transformers = import_transformers()
    model = getattr(transformers, architecture)(
        transformers.HubertConfig(**{**SIZES, **settings})
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model


def logits(loaded: Any, waveform: torch.Tensor) -> torch.Tensor:
    head = loaded.build_head()
    output = loaded.model(waveform, hidden_states=True)
    return head(output if loaded.kind == "classify" else output.last)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_encoder(tmp_path: Path, variant: str) -> None:
    theirs = written(tmp_path, "HubertModel", **VARIANTS[variant])
    loaded = load_checkpoint(tmp_path)
    waveform = 0.3 * torch.randn(2, 9_000)
    with torch.no_grad():
        assert (loaded.model(waveform).last - theirs(waveform).last_hidden_state).abs().max() < 1e-5
    assert loaded.report is not None
    assert loaded.report.missing == (["masked_spec_embed"] if variant == "no masks" else [])
    FORMATS["huggingface"].export(tmp_path / "again", loaded)
    before = load_tensors(tmp_path / "model.safetensors")
    after = load_tensors(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


FOREIGN = {
    **{
        "apply_spec_augment": False,
        "mask_time_prob": 0.65,
        "mask_time_length": 7,
        "mask_time_min_masks": 3,
    },
    **{"mask_feature_prob": 0.2, "mask_feature_length": 5, "mask_feature_min_masks": 1},
    **{"ctc_loss_reduction": "mean", "ctc_zero_infinity": True, "final_dropout": 0.3},
}


@pytest.mark.parametrize("architecture", ["HubertModel", "HubertForCTC"])
def test_fields_beside_the_network_are_preserved(tmp_path: Path, architecture: str) -> None:
    written(tmp_path, architecture, pad_token_id=0, **FOREIGN)
    (tmp_path / "vocab.json").write_text(
        json.dumps({symbol: row for row, symbol in enumerate(["<pad>", "<unk>", "|", *"ABC"])})
    )
    loaded = load_checkpoint(tmp_path)
    assert SpecAugment.of(loaded.extra["transformers"]) == SpecAugment(
        **{name: FOREIGN[name] for name in vars(SpecAugment())}
    )
    save_model(
        tmp_path / "ours",
        loaded.model,
        head=loaded.build_head() if loaded.head_state else None,
        extra=loaded.extra,
    )
    FORMATS["huggingface"].export(tmp_path / "again", load_checkpoint(tmp_path / "ours"))
    before, after = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path, tmp_path / "again")
    )
    assert (
        {name: after[name] for name in FOREIGN}
        == {name: before[name] for name in FOREIGN}
        == FOREIGN
    )
    assert load_checkpoint(tmp_path / "again").extra == loaded.extra


def test_adapters_that_transformers_ignores_are_not_built(tmp_path: Path) -> None:
    theirs = written(
        tmp_path, "HubertModel", adapter_attn_dim=6
    )  # post-norm: ignored without a word
    loaded = load_checkpoint(tmp_path)
    assert loaded.model.config.adapter_attn_dim is None
    assert loaded.report is not None
    assert any(
        "adapter_attn_dim is 6, which transformers ignores in a post-norm model" in note
        for note in loaded.report.notes
    )
    waveform = 0.3 * torch.randn(1, 9_000)
    with torch.no_grad():
        assert (loaded.model(waveform).last - theirs(waveform).last_hidden_state).abs().max() < 1e-5


def test_adapters_that_are_missing_are_an_error(tmp_path: Path) -> None:
    written(tmp_path, "HubertModel", **LARGE)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**stored, "adapter_attn_dim": 6}))
    with pytest.raises(
        ArtefactError, match=r"tensors are missing, first encoder\.layers\.0\.adapter_layer"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
@pytest.mark.parametrize("settings", [{}, LARGE], ids=["base", "large"])
def test_ctc(tmp_path: Path, settings: dict[str, Any], form: str) -> None:
    """As fine-tuned models are published: the blank anywhere, its name in brackets, old names of
    weights, a *.bin.
    """
    theirs = written(tmp_path, "HubertForCTC", pad_token_id=5, **settings)
    vocabulary = {"|": 0, "A": 1, "B": 2, "'": 3, "[UNK]": 4, "[PAD]": 5}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": {"content": "[PAD]"}, "unk_token": "[UNK]"})
    )
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": True, "sampling_rate": 16_000})
    )
    tensors = load_tensors(tmp_path / "model.safetensors")
    if form == "bin":
        new = "parametrizations.weight.original"
        old = "weight_"
        state = {
            name.replace(f"{new}0", f"{old}g").replace(f"{new}1", f"{old}v"): tensor
            for name, tensor in tensors.items()
        }
        torch.save(state, tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    if form == "shards":
        (tmp_path / "model.safetensors").unlink()
        theirs.save_pretrained(tmp_path, max_shard_size="50KB")
        assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = load_checkpoint(tmp_path)
    assert loaded.extra["vocabulary"] == ["<pad>", "|", "A", "B", "'", "<unk>"]
    assert loaded.model.config.normalize_waveform
    waveform = 0.3 * torch.randn(1, 9_000)
    with torch.no_grad():
        assert (
            logits(loaded, waveform) - theirs(waveform).logits[..., [5, 0, 1, 2, 3, 4]]
        ).abs().max() < 1e-5


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("settings", [{}, LARGE], ids=["base", "large"])
def test_classes(tmp_path: Path, settings: dict[str, Any], weighted: bool) -> None:
    names = {0: "no", 1: "perhaps", 2: "yes"}
    theirs = written(
        tmp_path,
        "HubertForSequenceClassification",
        use_weighted_layer_sum=weighted,
        id2label=names,
        **settings,
    )
    loaded = load_checkpoint(tmp_path)
    assert loaded.extra["classes"] == ["no", "perhaps", "yes"]
    assert loaded.report is not None
    assert "taken as" in loaded.report.notes[0]  # there is no processor file
    waveform = 0.3 * torch.randn(2, 9_000)
    with torch.no_grad():
        assert (logits(loaded, waveform) - theirs(waveform).logits).abs().max() < 1e-5


def test_a_folder_of_a_processor_of_5(tmp_path: Path) -> None:
    """5.x nests the feature extractor in processor_config.json and writes no
    preprocessor_config.json.
    """
    written(tmp_path, "HubertForCTC", pad_token_id=0)
    transformers = import_transformers()
    (tmp_path / "vocab.json").write_text(
        json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5})
    )
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    transformers.Wav2Vec2Processor(
        feature_extractor=extractor, tokenizer=tokenizer
    ).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    loaded = load_checkpoint(tmp_path)
    assert not loaded.model.config.normalize_waveform
    assert loaded.report is not None
    assert not loaded.report.notes
    assert loaded.extra["vocabulary"] == ["<pad>", "<s>", "</s>", "<unk>", "|", "A"]
