"""Rows about targets, labels and checkpoints: well, and made to fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.finetune.classify import ClassifyTask
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.frames import MODEL_GRID, FrameGrid
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import artefacts

Make = Callable[..., Corpus]
SPLITS = {"train_split": "train", "valid_split": "valid", "test_split": "test"}
SMALL = {
    "conv_dim": [8] * 7,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture
def place(
    tmp_path: Path, make_corpus: Make, make_targets: Callable[..., CodebookSet]
) -> tuple[Path, Corpus]:
    corpus = make_corpus()
    make_targets(tmp_path / "it1", corpus)
    return tmp_path / "it1", corpus


def test_targets_that_join(place: tuple[Path, Corpus]) -> None:
    folder, corpus = place
    row = artefacts.stored_targets(
        "targets it1", folder / "label", corpus, MODEL_GRID, folder / "cluster"
    )
    assert row.state == "ok"
    made_by = CodebookSet.load(folder / "cluster").fingerprint[:12]
    assert row.found == f"12 utterances, 612 frames, codebook {made_by}"
    assert (
        artefacts.stored_targets("targets it1", folder / "label", corpus, MODEL_GRID, None).state
        == "ok"
    )


def test_targets_of_another_codebook(place: tuple[Path, Corpus]) -> None:
    folder, corpus = place
    CodebookSet.of(Codebook(2 * torch.eye(5), {"kind": "test"}, MODEL_GRID)).save(folder / "other")
    row = artefacts.stored_targets(
        "targets it1", folder / "label", corpus, MODEL_GRID, folder / "other"
    )
    assert row.state == "error"
    assert "labelled with codebook" in row.found
    assert f"but {folder / 'other'} holds" in row.found
    assert row.fix == "redo=it1/label makes them again, and what follows"


def test_targets_of_another_manifest_or_grid(place: tuple[Path, Corpus], make_corpus: Make) -> None:
    folder, corpus = place
    row = artefacts.stored_targets(
        "targets it1", folder / "label", corpus, FrameGrid(400, 160), folder / "cluster"
    )
    assert "targets come 50 times a second" in row.found
    assert row.fix == "label on its grid"
    other = make_corpus(splits=("train", "valid"))
    row = artefacts.stored_targets(
        "targets it1", folder / "label", other, MODEL_GRID, folder / "cluster"
    )
    assert (row.state, row.fix) == ("error", "redo=NAME/label makes them again")
    assert "targets of 12 utterances, but" in row.found


def test_cut_or_lost_targets(place: tuple[Path, Corpus]) -> None:
    folder, corpus = place
    path = folder / "label" / "targets.bin"
    path.write_bytes(path.read_bytes()[:-2])
    row = artefacts.stored_targets(
        "targets it1", folder / "label", corpus, MODEL_GRID, folder / "cluster"
    )
    assert (row.state, "has 1222 bytes, expected 1224" in row.found) == ("error", True)
    (folder / "label" / "store.json").unlink()
    assert (
        "store.json: missing"
        in artefacts.stored_targets("targets it1", folder / "label", corpus, MODEL_GRID, None).found
    )


def test_offsets_that_are_not_those_of_the_audio(place: tuple[Path, Corpus]) -> None:
    """The fingerprint joins, and still: a row's targets are those of its neighbour."""
    folder, corpus = place
    offsets = np.load(folder / "label" / "offsets.npy")
    offsets[1] += 3
    np.save(folder / "label" / "offsets.npy", offsets)
    row = artefacts.stored_targets(
        "targets it1", folder / "label", corpus, MODEL_GRID, folder / "cluster"
    )
    assert row.state == "error"
    assert row.found == "'u00' has 52 targets for 49 frames"


def test_what_targets_are_worth() -> None:
    fine = {"n_clusters": 100, "used_clusters": 98, "unigram_entropy_nats": 4.1}
    row = artefacts.target_quality("clusters it1", fine)
    assert (row.state, row.found) == (
        "ok",
        f"K 100, 98 used, entropy 4.10 of at most {math.log(100):.2f} nats",
    )
    row = artefacts.target_quality("clusters it1", fine | {"unigram_entropy_nats": 1.5})
    assert (row.state, "a few clusters are most frames" in row.found) == ("warning", True)
    row = artefacts.target_quality("clusters it1", fine | {"used_clusters": 60})
    assert (row.state, "40 clusters never occur" in row.found) == ("warning", True)
    several = {"n_clusters": [10, 20], "used_clusters": 15.0, "unigram_entropy_nats": 4.5}
    assert artefacts.target_quality("clusters it1", several).found.startswith(
        "K 10 + 20, 15 used, entropy 4.50 of at most 5.30"
    )
    assert artefacts.target_quality("clusters it1", {}).found == "not measured"


def test_transcripts(make_corpus: Make) -> None:
    corpus = make_corpus()
    row = artefacts.task_labels("finetune/asr", CtcTask(), corpus, MODEL_GRID, SPLITS)
    assert (row.state, row.found) == ("ok", "ctc: train 9, valid 2, test 1 utterances, 9 symbols")


def test_transcripts_that_their_audio_cannot_hold(make_corpus: Make) -> None:
    """49 frames cannot hold 40 times the same character: each repeat needs a blank in between
    (T >= U + repeats).
    """
    corpus = make_corpus(texts=("A" * 40,) + ("HELLO",) * 11)
    row = artefacts.task_labels("finetune/asr", CtcTask(), corpus, MODEL_GRID, SPLITS)
    assert row.state == "error"
    assert (
        "of 9 training utterances 1 have a transcript longer than their frames can spell ('u00'; "
        "the first has 49 frames where 79 are needed)" in row.found
    )
    assert "max_dropped_fraction" in row.fix
    row = artefacts.task_labels(
        "finetune/asr", CtcTask(max_dropped_fraction=0.5), corpus, MODEL_GRID, SPLITS
    )
    assert (row.state, "left out" in row.found) == ("warning", True)


def test_letters_that_training_never_sees(
    make_corpus: Make, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = make_corpus(texts=("HELLO",) * 9 + ("ZOO", "HELLO", "HELLO"))
    row = artefacts.task_labels("finetune/asr", CtcTask(), corpus, MODEL_GRID, SPLITS)
    assert row.state == "warning"
    assert "1 characters of these transcripts are in no training transcript" in row.found
    assert not caplog.records, "it is in the table, not on the terminal"


def test_no_transcripts_and_no_split(make_corpus: Make) -> None:
    corpus = make_corpus(texts=("",))
    row = artefacts.task_labels("finetune/asr", CtcTask(), corpus, MODEL_GRID, SPLITS)
    assert (row.state, "has a transcript" in row.found) == ("error", True)
    row = artefacts.task_labels(
        "finetune/asr", CtcTask(), corpus, MODEL_GRID, SPLITS | {"test_split": "exam"}
    )
    assert "split 'exam' has no utterances" in row.found
    assert row.fix == "set finetune.asr.test_split to one of them"


def test_classes(make_corpus: Make) -> None:
    corpus = make_corpus()
    row = artefacts.task_labels(
        "finetune/speakers", ClassifyTask(label="speaker"), corpus, MODEL_GRID, SPLITS
    )
    assert (row.state, row.found) == (
        "ok",
        "classify: train 9, valid 2, test 1 utterances, 2 classes",
    )


def test_normalisation() -> None:
    base = HubertConfig()
    large = HubertConfig(feat_extract_norm="layer", normalize_waveform=True)
    row = artefacts.normalisation({"the model": base, "teacher.pt": large})
    assert (row.state, row.found) == (
        "ok",
        "the model gets waveforms as recorded, teacher.pt gets waveforms normalised",
    )
    row = artefacts.normalisation({"the model": HubertConfig(feat_extract_norm="layer")})
    assert row.state == "warning"
    assert "with feat_extract_norm=layer the model expects them normalised" in row.found
    assert "model.normalize_waveform=true" in row.fix
    row = artefacts.normalisation(
        {"the model": base, "converted": HubertConfig(normalize_waveform=True)}
    )
    assert row.state == "warning"
    assert "as converted has, take them as recorded" in row.found


def test_checkpoints_of_others(tmp_path: Path) -> None:
    small = HubertConfig(**SMALL, num_conv_pos_embedding_groups=2)  # type: ignore[arg-type]
    save_model(tmp_path / "teacher", Hubert(small))
    workspace = Workspace(tmp_path / "run")
    reference = str(tmp_path / "teacher")
    row, models = artefacts.readable_checkpoints(workspace, {reference: "it1/cluster"})
    assert (row.state, models[reference].hidden_size) == ("ok", 16)
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"damaged")
    row, models = artefacts.readable_checkpoints(workspace, {reference: "it1/cluster"})
    assert row.state == "error"
    assert row.found.startswith("it1/cluster reads ")
    assert "cannot be read as safetensors" in row.found
    assert "docs/checkpoints.md" in row.fix
    assert artefacts.readable_checkpoints(workspace, {})[0].found == "no checkpoints of other runs"


def test_words_of_a_search_are_checked_with_the_labels(make_corpus: Make, tmp_path: Path) -> None:
    corpus = make_corpus()
    words = tmp_path / "words.txt"
    words.write_text("niemals\nnie\n")
    decoding = DecodingConfig(kind="lexicon", lexicon=str(words))
    row = artefacts.task_labels("finetune/asr", CtcTask(), corpus, MODEL_GRID, SPLITS, decoding)
    assert row.state == "error"
    assert "words.txt: 2 of 2 words (niemals, nie) have characters that the model has not" in (
        row.found
    )
