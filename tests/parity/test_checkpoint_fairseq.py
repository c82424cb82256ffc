"""fairseq's own checkpoints and CTC files, read and written again; dictionaries in any order; the
network of s3prl on our exports.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hubert_pretrain.interop.compare import count_equal_tensors, probe
from hubert_pretrain.interop.fairseq_dictionary import SPECIAL_NAMES
from hubert_pretrain.interop.fairseq_writer import (
    Dictionary,
    export_fairseq,
    export_s3prl,
    save_pickle,
)
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.pickles import Inert, plain, read_pickle


@pytest.fixture(params=["base", "large"])
def file(request: pytest.FixtureRequest, fairseq_outputs: Path) -> Path:
    return fairseq_outputs / f"{request.param}_checkpoint.pt"


def same_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in theirs
    )


@pytest.mark.parametrize("noted", [True, False])
def test_an_export_equals_the_original_file(file: Path, tmp_path: Path, noted: bool) -> None:
    loaded = load_checkpoint(file)
    export_fairseq(tmp_path / "x.pt", loaded)
    ours = read_pickle(tmp_path / "x.pt")
    theirs = read_pickle(file)
    assert same_tensors(ours["model"], theirs["model"])
    mine, dictionary = (content["task_state"]["dictionaries"][0] for content in (ours, theirs))
    assert isinstance(mine, Inert)
    assert type(mine).__name__ == type(dictionary).__name__ == "fairseq.data.dictionary.Dictionary"
    assert vars(mine) == vars(dictionary)
    settings = ours["cfg"]["model"]
    expected = plain(theirs["cfg"])["model"]
    # Settings of a training, and one that is spelled in another way.
    training = {"mask_prob", "label_rate", "conv_feature_layers"}
    assert {name: settings[name] for name in settings if name not in training} == {
        name: expected[name] for name in settings if name not in training
    }
    if not noted:
        ours.pop("hubert_pretrain")
        save_pickle(
            tmp_path / "x.pt",
            {**ours, "task_state": {"dictionaries": [Dictionary(vars(mine)["symbols"])]}},
        )
    count_equal_tensors(tmp_path / "x.pt", loaded, load_checkpoint(tmp_path / "x.pt"))


def test_a_dictionary_sorted_by_frequency(file: Path, tmp_path: Path) -> None:
    """Row 4 of the head is then not cluster 0: each unit embedding goes to the row of its number,
    and back.
    """
    content = read_pickle(file)
    clusters = [
        str(cluster)
        for cluster in torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    ]
    content["task_state"] = {"dictionaries": [Dictionary([*SPECIAL_NAMES, *clusters])]}
    content["cfg"] = plain(content["cfg"])
    save_pickle(tmp_path / "x.pt", content)
    loaded = load_checkpoint(tmp_path / "x.pt")
    straight = load_checkpoint(file)
    for row, cluster in enumerate(clusters):
        assert torch.equal(
            loaded.head_state["unit_embeddings"][int(cluster)],
            straight.head_state["unit_embeddings"][row],
        )
    export_fairseq(tmp_path / "y.pt", loaded)
    assert same_tensors(read_pickle(tmp_path / "y.pt")["model"], content["model"])
    count_equal_tensors(tmp_path / "y.pt", loaded, load_checkpoint(tmp_path / "y.pt"))
    (tmp_path / "dict.km.txt").write_text(
        "".join(f"{cluster} 1\n" for cluster in clusters)
    )  # given beside a file that has another
    count_equal_tensors(
        tmp_path / "y.pt", loaded, load_checkpoint(file, dictionary=tmp_path / "dict.km.txt")
    )


def fine_tuned(file: Path, *, old: bool, dictionary: bool) -> dict[str, Any]:
    """A CTC checkpoint as fairseq's trainer writes one, made of a pretraining checkpoint."""
    content = read_pickle(file)
    symbols = [*SPECIAL_NAMES, "|", "E", "T", "A"]
    settings = plain(content["cfg"])["model"]
    task = plain(content["cfg"])["task"]
    head = {"w2v_encoder.proj.weight": torch.randn(8, 64), "w2v_encoder.proj.bias": torch.randn(8)}
    inner = {
        name: tensor
        for name, tensor in content["model"].items()
        if name not in ("final_proj.weight", "final_proj.bias")
    }
    if old:
        inner.pop("label_embs_concat")
    else:
        inner = {
            name.replace("weight_g", "parametrizations.weight.original0"): tensor
            for name, tensor in inner.items()
        }
        inner = {
            name.replace("weight_v", "parametrizations.weight.original1"): tensor
            for name, tensor in inner.items()
        }
    model = {
        "_name": "hubert_ctc",
        "w2v_args": {"model": settings, "task": task},
        "dropout": 0.0,
        "layerdrop": 0.1,
        "final_dropout": 0.2,
    }
    model |= {
        "feature_grad_mult": 0.0,
        "attention_dropout": 0.3,
        "activation_dropout": 0.1,
        "dropout_input": 0.0,
    }
    if old:  # argparse instead of OmegaConf
        flat = Namespace(
            **{**task, **model, "arch": "hubert_ctc", "w2v_args": Namespace(**settings)}
        )
        del flat._name
        config: dict[str, Any] = {"args": flat}
    else:
        config = {"args": None, "cfg": {"model": model, "task": {**task, "fine_tuning": True}}}
    state = {"task_state": {"target_dictionary": Dictionary(symbols)}} if dictionary else {}
    return {
        **config,
        "model": OrderedDict(
            {f"w2v_encoder.w2v_model.{name}": value for name, value in inner.items()} | head
        ),
        **state,
    }


@pytest.mark.parametrize("old", [False, True])
def test_ctc(file: Path, tmp_path: Path, old: bool) -> None:
    content = fine_tuned(file, old=old, dictionary=True)
    save_pickle(tmp_path / "x.pt", content)
    loaded = load_checkpoint(tmp_path / "x.pt")
    assert loaded.kind == "ctc"
    assert loaded.extra["vocabulary"] == [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        "|",
        "E",
        "T",
        "A",
    ]  # the blank is called <pad> here
    config = loaded.model.config
    assert (config.conv_gradient_scale, config.attention_dropout, config.layerdrop) == (
        0.0,
        0.3,
        0.1,
    )
    assert config.normalize_waveform is file.name.startswith("large")
    assert loaded.config["head"]["dropout"] == 0.2
    assert loaded.report is not None
    assert loaded.report.unexpected == ([] if old else ["label_embs_concat"])
    reference = load_file(file.with_name(file.name.replace("_checkpoint.pt", ".safetensors")))
    weight, bias = (content["model"][f"w2v_encoder.proj.{name}"] for name in ("weight", "bias"))
    with torch.no_grad():
        state = loaded.model(reference["waveform"], layers=3).last
        assert (state - reference["hidden.3"]).abs().max() < 1e-5
        assert (
            loaded.build_head()(state) - (reference["hidden.3"] @ weight.T + bias)
        ).abs().max() < 1e-4
    export_fairseq(tmp_path / "y.pt", loaded)
    again = read_pickle(tmp_path / "y.pt")
    assert torch.equal(again["model"]["w2v_encoder.proj.weight"], weight)
    assert vars(again["task_state"]["target_dictionary"])["symbols"] == [
        *SPECIAL_NAMES,
        "|",
        "E",
        "T",
        "A",
    ]
    count_equal_tensors(tmp_path / "y.pt", loaded, load_checkpoint(tmp_path / "y.pt"))


def test_ctc_with_a_given_dictionary(file: Path, tmp_path: Path) -> None:
    save_pickle(tmp_path / "x.pt", fine_tuned(file, old=False, dictionary=False))
    loaded = load_checkpoint(tmp_path / "x.pt")
    assert "vocabulary" not in loaded.extra
    assert loaded.report is not None
    assert "give its dict.ltr.txt" in loaded.report.notes[0]
    (tmp_path / "dict.ltr.txt").write_text("| 94802\nE 51860\nT 38431\nA 33152\n")
    loaded = load_checkpoint(tmp_path / "x.pt", dictionary=tmp_path / "dict.ltr.txt")
    assert loaded.extra["vocabulary"][4:] == ["|", "E", "T", "A"]


def test_the_network_of_s3prl_computes_the_same(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `make` installs it there, without its dependencies.
    monkeypatch.syspath_prepend(str(Path(sys.prefix) / "s3prl"))
    expert = pytest.importorskip(
        "s3prl.upstream.hubert.expert", reason="s3prl is not installed", exc_type=ImportError
    )
    loaded = load_checkpoint(file)
    export_s3prl(tmp_path / "x.pt", loaded)
    upstream = expert.UpstreamExpert(str(tmp_path / "x.pt")).eval()
    waveform = probe(loaded)
    with torch.no_grad():
        states = upstream([waveform[0]])["hidden_states"]
        if loaded.model.config.normalize_waveform:
            waveform = torch.nn.functional.layer_norm(waveform, waveform.shape[1:])
        ours = loaded.model(waveform, hidden_states=True)
    ours_there = [
        ours.encoder_input,
        *ours.hidden_states[:-1],
        ours.last,
    ]  # their last is normalised
    for theirs, state in zip(states, ours_there, strict=True):
        assert (theirs - state).abs().max() < 1e-5


def test_a_file_for_s3prl_loads_with_weights_only(file: Path, tmp_path: Path) -> None:
    export_s3prl(tmp_path / "x.pt", load_checkpoint(file))
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert {"task_cfg", "model_cfg", "model_weight", "dictionaries_symbols"} <= content.keys()
