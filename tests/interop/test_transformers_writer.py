"""Folders for `transformers`: loaded by its own classes and pipelines, equal to ours."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.compare import compare, probe_waveform
from hubert_pretrain.interop.fairseq_writer import model_settings
from hubert_pretrain.interop.tensor_names import FAIRSEQ_HEAD, TRANSFORMERS, left_over, to_ours
from hubert_pretrain.interop.transformers_writer import PRETRAINING_HEAD, export_huggingface
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, load_tensors, save_model
from hubert_pretrain.model.config import HubertConfig, SpanMask
from hubert_pretrain.model.heads import ClassificationHead, CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.spec_augment import SpecAugment

VOCABULARY = ["<pad>", "<unk>", "|", *"'ABCDEN"]
CLASSES = ["no", "perhaps", "yes"]
GROUP = HubertConfig(
    conv_dim=[16] * 7,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    projection_size=24,
)
LAYER = dataclasses.replace(
    GROUP,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_bias=True,
    normalize_waveform=True,
)
KINDS = ["pretrain", "ctc", "classify", "weighted"]


def checkpoint(
    folder: Path, config: HubertConfig, kind: str, extra: dict[str, Any] | None = None
) -> LoadedModel:
    """A saved and reloaded model of random weights; random biases too, so that a bias put elsewhere
    would show.
    """
    torch.manual_seed(0)
    heads = {
        "pretrain": CodebookHead(config.hidden_size, config.projection_size, 20),
        "ctc": CTCHead(config.hidden_size, len(VOCABULARY), dropout=0.1),
        "classify": ClassificationHead(config.hidden_size, len(CLASSES), 8),
        "weighted": ClassificationHead(
            config.hidden_size,
            len(CLASSES),
            8,
            n_layers=config.num_hidden_layers,
            weighted_layers=True,
        ),
    }
    model = Hubert(config)
    head = heads[kind]
    for name, parameter in itertools.chain(model.named_parameters(), head.named_parameters()):
        if name.endswith("bias") or name == "layer_weights":
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(
        folder,
        model,
        head=head,
        extra={"vocabulary": VOCABULARY, "classes": CLASSES} if extra is None else extra,
    )
    return load_model(folder)


@pytest.fixture(params=[GROUP, LAYER], ids=["group", "layer"])
def config(request: pytest.FixtureRequest) -> HubertConfig:
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_every_output_is_equal(tmp_path: Path, config: HubertConfig, kind: str) -> None:
    loaded = checkpoint(tmp_path / "ours", config, kind)
    export_huggingface(tmp_path / "theirs", loaded)
    report = compare(tmp_path / "theirs", loaded)
    assert len(report.differences) == config.num_hidden_layers + (1 if kind == "pretrain" else 2)
    assert report.max_difference < 1e-5


def test_a_wrong_export_is_refused(tmp_path: Path) -> None:
    loaded = checkpoint(tmp_path / "ours", GROUP, "ctc")
    export_huggingface(tmp_path / "theirs", loaded)
    with torch.no_grad():
        loaded.model.context_encoder.layers[1].feed_forward.down.weight[0, 0] += 0.5
    with pytest.raises(ArtefactError, match="layer 2 of the exported model differs"):
        compare(tmp_path / "theirs", loaded)


def test_weights_come_back_bit_for_bit(tmp_path: Path, config: HubertConfig) -> None:
    from transformers import HubertModel

    loaded = checkpoint(tmp_path / "ours", config, "pretrain")
    export_huggingface(tmp_path / "theirs", loaded)
    ours = loaded.model.state_dict()
    for state in (
        load_tensors(tmp_path / "theirs" / "model.safetensors"),
        HubertModel.from_pretrained(tmp_path / "theirs").state_dict(),
    ):
        assert left_over(state, ours, TRANSFORMERS) == []
        back = to_ours(state, ours, TRANSFORMERS, "test")
        assert all(torch.equal(back[name], ours[name]) for name in ours)
    head = to_ours(
        load_tensors(tmp_path / "theirs" / PRETRAINING_HEAD),
        loaded.head_state,
        FAIRSEQ_HEAD,
        "test",
    )
    assert all(torch.equal(head[name], loaded.head_state[name]) for name in head)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_finds_every_weight_and_no_other(
    tmp_path: Path, config: HubertConfig, kind: str
) -> None:
    import transformers

    loaded = checkpoint(tmp_path / "ours", config, kind)
    export_huggingface(tmp_path / "theirs", loaded)
    architecture = json.loads((tmp_path / "theirs" / "config.json").read_text())["architectures"][0]
    _, info = getattr(transformers, architecture).from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


def test_auto_classes_and_normalisation(tmp_path: Path, config: HubertConfig) -> None:
    from transformers import AutoModelForCTC, AutoProcessor

    export_huggingface(tmp_path / "theirs", checkpoint(tmp_path / "ours", config, "ctc"))
    model = AutoModelForCTC.from_pretrained(tmp_path / "theirs")
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    extractor = processor.feature_extractor
    assert extractor.do_normalize is config.normalize_waveform
    assert extractor.return_attention_mask is (config.feat_extract_norm == "layer")
    assert (
        json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())["do_normalize"]
        is config.normalize_waveform
    )
    assert model.config.pad_token_id == 0
    assert model.config.vocab_size == len(processor.tokenizer) == len(VOCABULARY)


def greedy(path: list[int], vocabulary: list[str]) -> str:
    """CTC's best path by its definition: merge repeats, drop blanks, "|" is a space."""
    return (
        "".join(vocabulary[symbol] for symbol, _ in itertools.groupby(path) if symbol != 0)
        .replace("|", " ")
        .strip()
    )


@pytest.mark.parametrize(
    "symbols",
    [
        VOCABULARY,
        ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "n", "'", "t", "É"],
        ["<pad>", "|", "A", "B"],
    ],
)
def test_the_tokenizer_decodes_any_path_as_greedy_search_does(
    tmp_path: Path, symbols: list[str]
) -> None:
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    save_model(
        tmp_path / "ours",
        Hubert(GROUP),
        head=CTCHead(GROUP.hidden_size, len(symbols)),
        extra={"vocabulary": symbols},
    )
    export_huggingface(tmp_path / "theirs", load_model(tmp_path / "ours"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert [tokenizer.convert_ids_to_tokens(index) for index in range(len(symbols))] == symbols
    for seed in range(50):
        path = np.random.default_rng(seed).integers(len(symbols), size=60).repeat(2).tolist()
        assert tokenizer.decode(path) == greedy(path, symbols)


def test_the_speech_recognition_pipeline_transcribes_as_we_do(
    tmp_path: Path, config: HubertConfig
) -> None:
    from transformers import pipeline

    loaded = checkpoint(tmp_path / "ours", config, "ctc")
    waveform = probe_waveform(24_000)
    normalised = (
        (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-5)
        if config.normalize_waveform
        else waveform
    )
    with torch.inference_mode():
        states = loaded.model(torch.from_numpy(normalised)[None]).last
        # A random network predicts the same character in all frames; without the mean of the frames
        # it predicts several.
        loaded.head_state["linear.bias"] = -loaded.head_state["linear.weight"] @ states[0].mean(0)
        path = loaded.build_head()(states)[0].argmax(-1).tolist()
    assert len(set(path)) > 2
    export_huggingface(tmp_path / "theirs", loaded)
    recogniser = pipeline("automatic-speech-recognition", model=str(tmp_path / "theirs"))
    texts = {
        recogniser(waveform)["text"],
        recogniser({"raw": waveform, "sampling_rate": 16_000})["text"],
    }
    assert texts == {greedy(path, VOCABULARY)}


def test_the_classification_pipeline_names_our_classes(
    tmp_path: Path, config: HubertConfig
) -> None:
    from transformers import pipeline

    loaded = checkpoint(tmp_path / "ours", config, "classify")
    export_huggingface(tmp_path / "theirs", loaded)
    waveform = probe_waveform(24_000)
    found = {
        item["label"]: item["score"]
        for item in pipeline("audio-classification", model=str(tmp_path / "theirs"))(
            waveform, top_k=None
        )
    }
    if config.normalize_waveform:
        waveform = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
    with torch.inference_mode():
        ours = loaded.build_head()(loaded.model(torch.from_numpy(waveform)[None]))[0].softmax(-1)
    assert found == pytest.approx(dict(zip(CLASSES, ours.tolist(), strict=True)), abs=1e-4)


def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        export_huggingface(tmp_path / "theirs", checkpoint(tmp_path / "ours", GROUP, "pretrain"))
    finally:
        os.umask(old)
    for name in ("model.safetensors", PRETRAINING_HEAD, "config.json", "preprocessor_config.json"):
        assert stat.S_IMODE((tmp_path / "theirs" / name).stat().st_mode) == 0o644, name


def test_an_activation_that_transformers_lacks(tmp_path: Path) -> None:
    save_model(tmp_path / "ours", Hubert(dataclasses.replace(GROUP, hidden_act="selu")))
    with pytest.raises(ArtefactError, match="hidden_act 'selu'"):
        export_huggingface(tmp_path / "theirs", load_model(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("kind", "key", "labels"),
    [
        ("classify", "classes", None),
        *(
            (kind, key, labels)
            for kind, key in (("ctc", "vocabulary"), ("classify", "classes"))
            for labels in (["<pad>", "A"], ["<pad>"] * len(VOCABULARY))
        ),
    ],
)
def test_labels_that_do_not_fit_the_head(
    tmp_path: Path, kind: str, key: str, labels: list[str] | None
) -> None:
    loaded = checkpoint(tmp_path / "ours", GROUP, kind, extra={key: labels})
    with pytest.raises(ArtefactError, match=f'extra\\["{key}"\\]'):
        export_huggingface(tmp_path / "theirs", loaded)


@pytest.mark.parametrize("kind", KINDS)
def test_config_json_has_fields_of_transformers_only(tmp_path: Path, kind: str) -> None:
    import transformers

    export_huggingface(tmp_path / "theirs", checkpoint(tmp_path / "ours", GROUP, kind))
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    known = transformers.HubertConfig().to_dict()
    assert set(written) - set(known) == {"adapter_attn_dim"}  # of Wav2Vec2Config


@pytest.mark.parametrize("kind", KINDS)
def test_the_processor_loads_without_a_vocabulary_too(tmp_path: Path, kind: str) -> None:
    from transformers import AutoProcessor

    export_huggingface(tmp_path / "theirs", checkpoint(tmp_path / "ours", LAYER, kind))
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    extractor = processor.feature_extractor if kind == "ctc" else processor
    assert extractor.do_normalize


def test_masks_of_the_recipe(tmp_path: Path) -> None:
    masks = SpecAugment.of_spans(
        SpanMask(probability=0.65, span_frames=7), SpanMask(probability=0.5, span_frames=64)
    )
    extra = {"vocabulary": VOCABULARY, "transformers": vars(masks)}
    loaded = checkpoint(tmp_path / "ours", GROUP, "ctc", extra=extra)
    export_huggingface(tmp_path / "theirs", loaded)
    assert SpecAugment.of(json.loads((tmp_path / "theirs" / "config.json").read_text())) == masks
    settings = model_settings(loaded)
    assert [settings[f"mask_{name}"] for name in ("prob", "length", "channel_prob")] == [
        0.65,
        7,
        0.5,
    ]


def test_a_tokenizer_that_spells_otherwise_is_refused(tmp_path: Path) -> None:
    loaded = checkpoint(tmp_path / "ours", GROUP, "ctc")
    export_huggingface(tmp_path / "theirs", loaded)
    path = tmp_path / "theirs" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "|"}))
    with pytest.raises(ArtefactError, match="the exported tokenizer writes"):
        compare(tmp_path / "theirs", loaded)


def test_a_broken_torchaudio_does_not_prevent_an_import(tmp_path: Path) -> None:
    """As after an unpinned install: the files are there, importing them raises."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(
        "raise RuntimeError('compiled with different CUDA versions')\n"
    )
    code = (
        "from hubert_pretrain.interop.transformers_writer import import_transformers; "
        "print(import_transformers().HubertModel.__name__)"
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.stdout.strip() == "HubertModel", result.stderr
