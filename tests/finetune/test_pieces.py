"""Vocabularies of pieces of words (BPE), from the transcripts, a file or a checkpoint: spelling,
decoding, exports.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.decoding.build import build_decoder
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.greedy import GreedyDecoder
from hubert_pretrain.decoding.spelling import Spelling
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.finetune.task import gather_examples
from hubert_pretrain.finetune.text import BLANK, BOUNDARY, UNKNOWN, Vocabulary, read_vocabulary
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from tests.finetune.conftest import run_task

TEXTS = ["THE CAT SAT ON THE MAT", "THE DOG'S MAT", "A CAT AND A DOG", "THAT HAT", "ÉTÉ 東京"]
VOCABULARY = Vocabulary.of_pieces(TEXTS, 45)
SPLITS = {"train_split": "train", "valid_split": "valid", "test_split": "test"}
PIECES = {
    "_target_": "hubert_pretrain.finetune.ctc.CtcTask",
    "units": "pieces",
    "vocabulary_size": 16,
}


def _encode(word: str, merges: tuple[tuple[str, str], ...]) -> list[str]:
    """The definition of BPE: the earliest merge that applies, at every place, until none does."""
    pieces = list("▁" + word)
    for first, second in merges:
        place = 0
        while place + 1 < len(pieces):
            if (pieces[place], pieces[place + 1]) == (first, second):
                pieces[place : place + 2] = [first + second]
            place += 1
    return pieces


def _emissions(path: list[int], size: int) -> np.ndarray:
    """Log-probabilities of which each frame has one symbol that is best."""
    logits = np.random.default_rng(0).normal(size=(len(path), size))
    logits[np.arange(len(path)), path] += 8.0
    values = torch.from_numpy(logits).log_softmax(-1).numpy()
    return np.asarray(values, dtype=np.float32)


@given(st.lists(st.text("THECASONDG'MÉ東京", min_size=1, max_size=8), max_size=4))
def test_pieces_are_those_of_bpe_and_spell_the_text(words: list[str]) -> None:
    text = " ".join(words)
    ids = VOCABULARY.ids(text)
    expected = [piece for word in words for piece in _encode(word, VOCABULARY.merges)]
    assert [VOCABULARY.symbols[index] for index in ids] == expected
    assert VOCABULARY.text(ids) == text


def test_a_vocabulary_of_pieces() -> None:
    assert VOCABULARY.symbols[:2] == (BLANK, UNKNOWN)
    assert BOUNDARY not in VOCABULARY.symbols
    assert VOCABULARY.unit == "pieces"
    assert "▁THE" in VOCABULARY.symbols
    assert set("".join(TEXTS)) - {" "} <= set(VOCABULARY.symbols)
    assert Vocabulary.of_pieces(TEXTS[::-1], 45) == VOCABULARY
    assert Vocabulary.of_card(json.loads(json.dumps(VOCABULARY.card()))) == VOCABULARY
    assert VOCABULARY.ids("A Z")[-1] == 1  # <unk>
    assert VOCABULARY.count_unknown(["A Z", "ZÑ"]) == {"Z": 2, "Ñ": 1}
    copy = pickle.loads(pickle.dumps(VOCABULARY))
    assert copy.ids("THAT CAT") == VOCABULARY.ids("THAT CAT")


def test_a_size_that_does_not_hold_the_characters() -> None:
    characters = len(set("".join(TEXTS)) - {" "})
    message = rf"task.vocabulary_size=10: .* have {characters} characters, so at least"
    with pytest.raises(ConfigError, match=message):
        Vocabulary.of_pieces(TEXTS, 10)
    least = Vocabulary.of_pieces(TEXTS, characters + 3)  # blank, unknown, the mark of words
    assert not least.merges
    assert len(least) == characters + 3


def test_damaged_merges_are_refused() -> None:
    card = VOCABULARY.card()
    card["merges"] = [*card["merges"], ["X", "Y"]]
    with pytest.raises(ArtefactError, match="merges name 'X', which is no symbol"):
        Vocabulary.of_card(card)


def test_searches_find_words_of_pieces() -> None:
    """Greedy, by a beam, and with a lexicon and a language model, whose words are spelt as the
    model has learnt them.
    """
    text = "THE CAT AND THAT DOG'S MAT"
    ids = VOCABULARY.ids(text)
    path = [index for symbol in ids for index in (0, symbol, symbol)]
    emissions = _emissions(path, len(VOCABULARY))
    assert GreedyDecoder(VOCABULARY.symbols).decode(emissions).text == text
    for config in (
        DecodingConfig(kind="beam", workers=1),
        DecodingConfig(kind="lexicon", lexicon="train", lm="train", lm_order=2, workers=1),
    ):
        decoder = build_decoder(
            config, VOCABULARY.symbols, texts=[text, *TEXTS], spell=VOCABULARY.spell
        )
        found = decoder.decode(emissions)
        assert found.text == text
        assert [word.text for word in found.words] == text.split()
    # The longest pieces are not those of BPE: a lexicon spelt so would not find the word.
    longest = Spelling(VOCABULARY.symbols)
    spell = VOCABULARY.spell
    assert spell is not None
    words = {word for each in TEXTS for word in each.split()} | {"THOG", "SATHE", "ATHE"}
    assert all(spell(word) == VOCABULARY.ids(word) for word in words)
    assert any(spell(word) != longest.ids(word) for word in words)
    assert spell("ZOO") is None


def test_the_processor_of_an_export_decodes_and_encodes(tiny: HubertConfig, tmp_path: Path) -> None:
    from transformers import AutoProcessor, pipeline

    head = CTCHead(16, len(VOCABULARY))
    save_model(tmp_path / "ours", Hubert(tiny), head=head, extra=VOCABULARY.card())
    export_huggingface(tmp_path / "theirs", load_model(tmp_path / "ours"))
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    generator = np.random.default_rng(0)
    for _ in range(50):
        path = generator.integers(0, len(VOCABULARY), 12).repeat(2)
        collapsed = GreedyDecoder(VOCABULARY.symbols).decode(
            _emissions(path.tolist(), len(VOCABULARY))
        )
        # A mark of a word without a word is a space there, and nothing here.
        assert processor.decode(path).split() == VOCABULARY.text(collapsed.ids).split()
    for text in TEXTS:
        assert processor.tokenizer(text).input_ids == VOCABULARY.ids(text)
    again = load_checkpoint(tmp_path / "theirs")
    assert Vocabulary.of_card(again.extra) == VOCABULARY
    assert again.report is not None
    assert not [note for note in again.report.notes if "tokenizer" in note]
    waveform = generator.normal(size=16_000).astype(np.float32)
    recogniser = SpeechRecognizer.load(tmp_path / "theirs")
    theirs = pipeline("automatic-speech-recognition", model=str(tmp_path / "theirs"))
    assert theirs(waveform.copy())["text"].strip() == recogniser.transcribe(
        torch.from_numpy(waveform)
    )


def test_a_model_of_pieces_is_trained_and_goes_on(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trained, stored with its merges, decoded, and started again with its head, and with its
    vocabulary alone.
    """
    facts = run_task(workspace, "asr", PIECES, steps=2, valid_every_steps=2)
    folder = workspace.partial_folder("finetune/asr")
    stored = load_model(folder)
    vocabulary = Vocabulary.of_card(stored.extra)
    assert len(vocabulary) == 16
    assert vocabulary.merges
    assert facts["steps"] == 2
    corpus = Corpus.open(workspace.artefact("prepare").path)
    texts = [" ".join(corpus.manifest[row].text.split()) for row in range(24)]
    assert all(vocabulary.text(vocabulary.ids(text)) == text for text in texts)
    lines = (folder / "hypotheses.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[1] for line in lines} <= set(texts)
    decoding = DecodingConfig(kind="lexicon", lexicon=str(tmp_path / "words.txt"))
    (tmp_path / "words.txt").write_text("\n".join({w for t in texts for w in t.split()}))
    recogniser = SpeechRecognizer.load(folder, decoding=decoding)
    known = {word for text in texts for word in text.split()}
    assert set(recogniser.transcribe(torch.randn(8000)).split()) <= known

    export_huggingface(tmp_path / "first", stored)
    shutil.rmtree(folder)
    changes = {"checkpoint": str(tmp_path / "first"), "steps": 1, "valid_every_steps": 1}
    run_task(workspace, "asr", PIECES, start_head="keep", **changes)
    assert load_model(folder).extra["merges"] == stored.extra["merges"]
    again = CtcTask(vocabulary=str(tmp_path / "first"))
    gather_examples(again, corpus, MODEL_GRID, SPLITS, "finetune.asr")
    assert again.vocabulary == vocabulary
    caplog.set_level(logging.WARNING)
    large = CtcTask(units="pieces", vocabulary_size=5000)
    gather_examples(large, corpus, MODEL_GRID, SPLITS, "finetune.asr")
    assert re.search(r"task.vocabulary_size=5000: .* for \d+ symbols only", caplog.text)


# -- vocabularies of files


def _write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_vocabularies_of_files(tmp_path: Path) -> None:
    expected = Vocabulary((BLANK, UNKNOWN, BOUNDARY, "B", "A"))
    files = {
        "vocab.json": {"<pad>": 0, "A": 5, "B": 4, "|": 3, "<unk>": 2},
        "letters.txt": "B\nA\n",
        "dict.ltr.txt": "| 94802\nB 51860\nA 38431\n",
    }
    for name, content in files.items():
        assert read_vocabulary(_write(tmp_path / name, content), "task.vocabulary") == expected
    assert read_vocabulary(tmp_path, "task.vocabulary") == expected  # a folder of transformers
    _write(tmp_path / "tokenizer.json", VOCABULARY.tokenizer.to_str())
    assert read_vocabulary(tmp_path / "tokenizer.json", "task.vocabulary") == VOCABULARY


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "there is no such file"),
        ("list.json", ["A"], "is no vocabulary"),
        ("empty.txt", "", "holds no symbols"),
        ("words.txt", "THE\nCAT\n", "symbols such as 'THE'"),
        ("twice.txt", "A\nA\n", "one of them twice"),
        ("unigram.json", {"model": {"type": "Unigram", "vocab": []}}, "is 'Unigram', expected BPE"),
    ],
)
def test_files_that_are_no_vocabulary(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        _write(path, content)
    with pytest.raises(ConfigError, match=message) as error:
        read_vocabulary(path, "task.vocabulary")
    assert str(error.value).startswith(f"task.vocabulary={path}: ")


def test_characters_outside_a_given_vocabulary_are_listed_with_counts(
    corpus: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = _write(tmp_path / "letters.txt", "A\nB\nC\n")
    texts = [corpus.manifest[int(row)].text for row in corpus.manifest.rows("train")]
    missing = sum(text.count("D") for text in texts)
    lacking = [text for text in texts if "D" in text]
    task = CtcTask(vocabulary=str(path))
    message = rf"{len(lacking)} of {len(texts)} .* have 1 characters \(D {missing}\) that the voc"
    with pytest.raises(DataError, match=message):
        gather_examples(task, corpus, MODEL_GRID, SPLITS, "finetune.asr")
    task = CtcTask(vocabulary=str(path), max_dropped_fraction=1.0)
    train, valid, test = gather_examples(task, corpus, MODEL_GRID, SPLITS, "finetune.asr")
    assert train.references == [text for text in texts if "D" not in text]
    assert re.search(rf"\(D {missing}\) .*; left out", caplog.text)
    for name, examples in (("valid", valid), ("test", test)):
        count = sum(text.count("D") for text in examples.references)
        assert f"split {name!r}: {count} characters of these transcripts" in caplog.text
        assert len(examples) == len(corpus.manifest.rows(name))
