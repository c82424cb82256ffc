"""Folders of `transformers` as they are found: vocabularies that lack something, heads with more
rows, other prefixes, other names of activations, tensors beside the encoder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.interop.compare import probe_waveform
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.registry import FORMATS
from hubert_pretrain.interop.transformers_writer import import_transformers
from hubert_pretrain.model.checkpoint import load_tensors, save_tensors

SIZES: dict[str, Any] = {
    "conv_dim": [16] * 7,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFG"]
WAVEFORM = probe_waveform(24_000)


def written(folder: Path, architecture: str, **settings: Any) -> Any:
    """A random model of `transformers`, saved by it."""
    torch.manual_seed(0)
    transformers = import_transformers()
    config = transformers.HubertConfig(**{**SIZES, **settings})
    model = getattr(transformers, architecture)(config).eval()
    model.save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    extractor.save_pretrained(folder)
    return model


def letters(
    folder: Path, symbols: list[str], *, rows: int | None = None, pad: int = 0, **tokenizer: Any
) -> None:
    """A HubertForCTC that predicts many symbols, and its processor."""
    model = written(folder, "HubertForCTC", vocab_size=rows or len(symbols), pad_token_id=pad)
    torch.manual_seed(1)
    with torch.no_grad():
        states = model.hubert(torch.from_numpy(WAVEFORM)[None]).last_hidden_state[0]
        weight = 20 * torch.randn_like(model.lm_head.weight)
        model.lm_head.weight.copy_(weight)
        model.lm_head.bias.copy_(-weight @ states.mean(0))
    model.save_pretrained(folder)
    transformers = import_transformers()
    path = folder / "vocab.json"
    path.write_text(json.dumps({symbol: row for row, symbol in enumerate(symbols)}))
    transformers.Wav2Vec2Processor(
        feature_extractor=transformers.Wav2Vec2FeatureExtractor(do_normalize=False),
        tokenizer=transformers.Wav2Vec2CTCTokenizer(str(path), **tokenizer),
    ).save_pretrained(folder)


def their_text(folder: Path) -> str:
    """The text by the processor and the model of `transformers`."""
    transformers = import_transformers()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.HubertForCTC.from_pretrained(folder).eval()
    values = processor(WAVEFORM, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        return str(processor.batch_decode(model(values).logits.argmax(-1))[0])


def exported(folder: Path, source: Path) -> Path:
    loaded = load_checkpoint(source)
    FORMATS["huggingface"].write(folder, loaded)
    FORMATS["huggingface"].check(folder, loaded)
    return folder


def notes(path: Path) -> str:
    report = load_checkpoint(path).report
    assert report is not None
    return "; ".join(report.notes)


# -- vocabularies


def test_the_blank_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    """Letters first, [PAD] last, and the default pad_token_id 0 left in config.json."""
    symbols = ["|", *"ABCDEFG", "[UNK]", "[PAD]"]
    letters(tmp_path / "in", symbols, unk_token="[UNK]", pad_token="[PAD]")
    expected = their_text(tmp_path / "in").replace("[UNK]", "<unk>")
    assert " " in expected
    assert SpeechRecognizer.load(tmp_path / "in").transcribe(WAVEFORM) == expected
    assert "blank is row 0, the vocabulary that it is row 9" in notes(tmp_path / "in")
    assert their_text(exported(tmp_path / "out", tmp_path / "in")) == expected


@pytest.mark.parametrize(
    "symbols",
    [
        ["<pad>", "<unk>", *"\u4f60\u597d\u4e16\u754c"],
        ["<pad>", "<s>", "</s>", "<unk>", "a\u02d0", "t\u0283", "e", "n"],
        ["<pad>", "|", *"ABCD"],
    ],
    ids=["no |", "phonemes", "no <unk>"],
)
def test_only_the_blank_is_needed_to_decode(tmp_path: Path, symbols: list[str]) -> None:
    letters(tmp_path / "in", symbols)
    expected = their_text(tmp_path / "in")
    assert len(set(expected)) > 2
    assert SpeechRecognizer.load(tmp_path / "in").transcribe(WAVEFORM) == expected
    assert their_text(exported(tmp_path / "out", tmp_path / "in")) == expected


def test_another_tokenizer_is_noted(tmp_path: Path) -> None:
    letters(tmp_path, LETTERS)
    path = tmp_path / "tokenizer_config.json"
    other = {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **other}))
    assert "its tokenizer is Wav2Vec2PhonemeCTCTokenizer" in notes(tmp_path)


def test_lower_case(tmp_path: Path) -> None:
    letters(tmp_path / "in", LETTERS, do_lower_case=True)
    expected = their_text(tmp_path / "in")
    assert expected == expected.lower()
    assert SpeechRecognizer.load(tmp_path / "in").transcribe(WAVEFORM) == expected
    assert their_text(exported(tmp_path / "out", tmp_path / "in")) == expected


def test_rows_without_a_symbol_have_names(tmp_path: Path) -> None:
    letters(tmp_path / "in", LETTERS, rows=16)
    loaded = load_checkpoint(tmp_path / "in")
    names = [f"<row {row}>" for row in range(12, 16)]
    assert loaded.extra["vocabulary"] == [*LETTERS, *names]
    assert "4 of the 16 rows of its head have no symbol" in notes(tmp_path / "in")
    exported(tmp_path / "out", tmp_path / "in")


@pytest.fixture
def without_vocabulary(tmp_path: Path) -> Path:
    """checkpoint-500 of a trainer, and dict.ltr.txt beside it."""
    letters(tmp_path / "full", LETTERS)
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(tmp_path / "full" / name, folder)
    lines = [f"{symbol} 1\n" for symbol in LETTERS[4:]]
    # A byte order mark, as editors on Windows leave.
    (tmp_path / "dict.ltr.txt").write_text("".join(lines), encoding="utf-8-sig")
    return folder


def test_a_dictionary_names_the_rows(without_vocabulary: Path, tmp_path: Path) -> None:
    recogniser = SpeechRecognizer.load(without_vocabulary, dictionary=tmp_path / "dict.ltr.txt")
    assert recogniser.transcribe(WAVEFORM) == their_text(tmp_path / "full")
    with pytest.raises(ArtefactError, match=r"nothing\.txt: cannot be read as a dictionary"):
        load_checkpoint(without_vocabulary, dictionary=tmp_path / "nothing.txt")
    with pytest.raises(ArtefactError, match=r"copy vocab\.json and tokenizer_config\.json"):
        SpeechRecognizer.load(without_vocabulary)


def test_a_dictionary_that_is_not_used(tmp_path: Path) -> None:
    written(tmp_path / "encoder", "HubertModel")
    (tmp_path / "dict.ltr.txt").write_text("A 1\n")
    with pytest.raises(ConfigError, match=r"dict\.ltr\.txt is not used"):
        load_checkpoint(tmp_path / "encoder", dictionary=tmp_path / "dict.ltr.txt")


@pytest.mark.parametrize("form", ["huggingface", "torchaudio", "s3prl"])
def test_a_head_without_a_vocabulary_is_converted(
    without_vocabulary: Path, tmp_path: Path, form: str
) -> None:
    loaded = load_checkpoint(without_vocabulary)
    path = tmp_path / "out" / FORMATS[form].file
    FORMATS[form].write(path, loaded)
    FORMATS[form].check(path, loaded)
    assert "no vocab.json names its 12 characters" in notes(without_vocabulary)


def test_the_order_of_rows_without_names_stays(tmp_path: Path) -> None:
    """The vocabulary of the model that it was made from still fits the export."""
    letters(tmp_path / "full", [*"ABC", "|", "<unk>", "<pad>"], pad=5)
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(tmp_path / "full" / name, folder)
    exported(tmp_path / "out", folder)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] == 5
    for name in ("vocab.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "full" / name, tmp_path / "out")
    assert SpeechRecognizer.load(tmp_path / "out").transcribe(WAVEFORM) == their_text(
        tmp_path / "full"
    )


def test_fairseq_needs_a_vocabulary(without_vocabulary: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"fairseq needs a symbol for each of the 12 rows"):
        FORMATS["fairseq"].write(tmp_path / "x.pt", load_checkpoint(without_vocabulary))


# -- tensors and names


def last(path: Path) -> Tensor:
    with torch.inference_mode():
        return load_checkpoint(path).model(torch.from_numpy(WAVEFORM)[None]).last


def their_last(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(torch.from_numpy(WAVEFORM)[None]).last_hidden_state


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_tensors(folder / "model.safetensors", change(load_tensors(folder / "model.safetensors")))


@pytest.mark.parametrize("prefix", ["", "hubert.", "model.", "model.hubert.", "module.encoder."])
def test_tensors_beside_the_encoder_and_prefixes(tmp_path: Path, prefix: str) -> None:
    """ContentVec puts its final_proj beside HubertModel."""
    model = written(tmp_path, "HubertModel")
    head = {"final_proj.weight": torch.randn(8, 32), "final_proj.bias": torch.zeros(8)}
    change_weights(
        tmp_path, lambda weights: {**{prefix + key: weights[key] for key in weights}, **head}
    )
    report = load_checkpoint(tmp_path).report
    assert report is not None
    assert sorted(report.unexpected) == sorted(head)
    assert "2 tensors beside the encoder" in notes(tmp_path)
    torch.testing.assert_close(last(tmp_path), their_last(model), atol=1e-5, rtol=0)


def test_unknown_tensors_inside_the_encoder_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "HubertModel")
    change_weights(tmp_path, lambda weights: {**weights, "encoder.gate": torch.ones(2)})
    with pytest.raises(ArtefactError, match=r"1 weights have no place.*encoder\.gate"):
        load_checkpoint(tmp_path)


def test_two_networks_in_one_file_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "HubertModel")
    change_weights(
        tmp_path,
        lambda weights: {
            f"{part}.{key}": weights[key].clone()
            for part in ("teacher", "student")
            for key in weights
        },
    )
    with pytest.raises(ArtefactError, match=r"2 networks \(student\., teacher\.\)"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "activation", ["gelu_python", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate", "swish"]
)
def test_names_of_activations(tmp_path: Path, activation: str) -> None:
    model = written(
        tmp_path, "HubertModel", hidden_act=activation, feat_extract_activation=activation
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # far from zero, where the forms of GELU differ
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(last(tmp_path), their_last(model), atol=1e-5, rtol=0)


# -- the file that is named


@pytest.mark.parametrize("name", ["epoch10.pt", "epoch10.safetensors", "training.ckpt"])
@pytest.mark.parametrize("architecture", ["HubertModel", "HubertForCTC"])
def test_a_named_file_is_read_with_the_config_beside_it(
    tmp_path: Path, architecture: str, name: str
) -> None:
    model = written(tmp_path, architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if name.endswith("safetensors"):
        save_tensors(tmp_path / name, state)
    else:
        torch.save({"state_dict": state} if name.endswith("ckpt") else state, tmp_path / name)
    loaded = load_checkpoint(tmp_path / name)
    expected = state[("" if architecture == "HubertModel" else "hubert.") + "masked_spec_embed"]
    assert torch.equal(loaded.model.mask_embedding, expected)
    assert loaded.report is not None
    assert loaded.report.path == str(tmp_path / name)
    (tmp_path / "model.safetensors").unlink()
    assert load_checkpoint(tmp_path / name).kind == loaded.kind


def test_files_that_hold_no_network(tmp_path: Path) -> None:
    written(tmp_path, "HubertModel")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    torch.save({"loss_scale": torch.ones(1)}, tmp_path / "scaler.pt")
    with pytest.raises(ArtefactError, match=r"optimizer\.pt: holds state, param_groups, which is"):
        load_checkpoint(tmp_path / "optimizer.pt")
    with pytest.raises(ArtefactError, match=r"scaler\.pt: holds loss_scale; expected the weights"):
        load_checkpoint(tmp_path / "scaler.pt")


def test_a_shard_stands_for_its_folder(tmp_path: Path) -> None:
    model = written(tmp_path, "HubertModel")
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = min(tmp_path.glob("model-00001-of-*.safetensors"))
    torch.testing.assert_close(last(shard), their_last(model), atol=1e-5, rtol=0)
