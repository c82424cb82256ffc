"""Phone recognition: targets from a lexicon or from alignments, and their error rate."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import ALIGNMENTS, Corpus
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.finetune.normalisation import TextRules
from hubert_pretrain.finetune.phones import PhoneTask, read_pronunciations
from hubert_pretrain.finetune.task import Results, gather_examples
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pipeline.workspace import Workspace
from tests.finetune.conftest import run_task

SPLITS = {"train_split": "train", "valid_split": "valid", "test_split": "test"}
LEXICON = """;;; a comment of CMUdict
ONE  W AH1 N  # numeral
one(2)\tHH W AH1 N
Two T UW1
two t UW1
THREE TH R IY1
"""
WORDS = ["ONE", "TWO", "ONE TWO", "TWO ONE", "THREE"]


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    path = tmp_path / "lexicon.txt"
    path.write_text(LEXICON)
    return path


def _spoken(number: int) -> str:
    return WORDS[number % 5]


def test_a_lexicon(lexicon: Path) -> None:
    found = read_pronunciations(lexicon, TextRules())
    assert found == {
        "ONE": [("W", "AH1", "N"), ("HH", "W", "AH1", "N")],
        "TWO": [("T", "UW1"), ("t", "UW1")],
        "THREE": [("TH", "R", "IY1")],
    }
    assert set(read_pronunciations(lexicon, TextRules(case="lower"))) == {"one", "two", "three"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; set task.lexicon"),
        (b"ONE W AH1 N\nTWO\n", "line 2 has 'TWO' without phones"),
        (b";;; nothing\n\n", "holds no word"),
        (b"ONE \xff\n", "no UTF-8 text"),
    ],
)
def test_a_lexicon_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "lexicon.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pronunciations(path, TextRules())


def test_phones_of_transcripts(corpus_with: Callable[..., Corpus], lexicon: Path) -> None:
    task = PhoneTask(lexicon=str(lexicon))
    train, _, test = gather_examples(
        task, corpus_with(text=_spoken), MODEL_GRID, SPLITS, "finetune.pr"
    )
    assert task.vocabulary is not None
    phones = ("AH1", "IY1", "N", "R", "T", "TH", "UW1", "W")  # of the first pronunciations
    assert task.vocabulary.symbols == ("<pad>", "<unk>", *phones)
    assert "T UW1 W AH1 N" in train.references
    assert all(
        task.vocabulary.text(ids) == text
        for ids, text in zip(test.labels, test.references, strict=True)
    )
    report = task.reports()["pronunciations.json"]["splits"]["train"]
    assert report["missing_words"] == {}
    assert report["words_with_several_pronunciations"] > 0


def test_words_that_the_lexicon_lacks_are_named_with_counts(
    corpus_with: Callable[..., Corpus], lexicon: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    corpus = corpus_with(text=lambda number: "ONE FOUR FOUR" if number % 5 == 0 else "ONE TWO")
    texts = {
        split: [corpus.manifest[int(row)].text for row in corpus.manifest.rows(split)]
        for split in ("train", "test")
    }
    count = sum("FOUR" in text for text in texts["train"])
    task = PhoneTask(lexicon=str(lexicon))
    with pytest.raises(DataError, match=r"add the words to .*lexicon.txt"):
        gather_examples(task, corpus, MODEL_GRID, SPLITS, "finetune.pr")
    assert f"(FOUR {2 * count})" in caplog.text
    task = PhoneTask(lexicon=str(lexicon), max_dropped_fraction=1.0)
    train, _, test = gather_examples(task, corpus, MODEL_GRID, SPLITS, "finetune.pr")
    assert len(train) == len(texts["train"]) - count
    assert not any("<unk>" in text for text in train.references)
    # Test utterances are all scored: a phone that nobody can predict for each missing word.
    assert len(test) == len(texts["test"])
    assert sum(text.count("<unk>") for text in test.references) == 2 * sum(
        "FOUR" in text for text in texts["test"]
    )


def _aligned(corpus: Corpus, leave_out: int = -1) -> Corpus:
    """Its letters as phones, one after the other."""
    pairs: list[tuple[int, Any]] = []
    for row in range(len(corpus.manifest)):
        if row == leave_out:
            continue
        text = corpus.manifest[row].text
        pairs.append(
            (row, [(x.lower(), 2000 * n, 2000 * n + 2000) for n, x in enumerate(text) if x != " "])
        )
    write_alignments(corpus.folder / ALIGNMENTS, pairs)
    return Corpus.open(corpus.folder)


def test_phones_of_alignments(corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match="has an alignment; give the corpus phone alignments"):
        gather_examples(PhoneTask(), corpus, MODEL_GRID, SPLITS, "finetune.pr")
    row = int(corpus.manifest.rows("train")[2])
    task = PhoneTask(max_dropped_fraction=0.5)
    caplog.set_level(logging.WARNING)
    train, *_ = gather_examples(
        task, _aligned(corpus, leave_out=row), MODEL_GRID, SPLITS, "finetune.pr"
    )
    assert row not in train.rows
    assert "1 of" in caplog.text
    assert "have no alignment" in caplog.text
    expected = [" ".join(corpus.manifest[int(r)].text.replace(" ", "").lower()) for r in train.rows]
    assert train.references == expected


def test_phones_are_the_words_of_scores() -> None:
    """PER: one phone in five is wrong, whatever letters it has."""
    task = PhoneTask()
    results = Results.of_texts(["HH AH L OW", "K"], ["HH EH L OW", "K"])
    assert task.score(results)["per"] == 0.2
    assert task.metrics[0].name == "per"
    lengths = np.array([16_000, 16_000])
    scored = ScoredUtterances(results.ids, results.references, results.texts, ["a", "b"], lengths)
    analysis = task.analyse(results, scored, Sampling(resamples=20))
    assert "wer" not in analysis.scores
    assert analysis.scores["per"]["utterance"].value == 0.2
    assert analysis.tables["substituted phones"].rows == [("AH", "EH", 1)]
    assert "per" in analysis.utterances.header
    assert task.tables(results)["hypotheses.tsv"].startswith("id\treference\thypothesis\tper\n")


def test_phones_are_trained_exported_and_evaluated(workspace: Workspace, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    _aligned(Corpus.open(workspace.artefact("prepare").path))
    node = {"_target_": "hubert_pretrain.finetune.phones.PhoneTask"}
    facts = run_task(workspace, "pr", node, steps=2, valid_every_steps=2)
    assert facts["best_by"] == "valid/per"
    folder = workspace.partial_folder("finetune/pr")
    stored = load_model(folder)
    vocabulary = Vocabulary.of_card(stored.extra)
    assert vocabulary.phones
    assert vocabulary.symbols == ("<pad>", "<unk>", "a", "b", "c", "d")
    export_huggingface(tmp_path / "theirs", stored)
    processor = AutoProcessor.from_pretrained(tmp_path / "theirs")
    assert processor.decode([2, 2, 0, 2, 3, 3, 0]) == "a a b"
    assert processor.tokenizer("a a b").input_ids == vocabulary.ids("a a b")
    lines = (folder / "hypotheses.tsv").read_text().splitlines()[1:]
    recogniser = SpeechRecognizer.load(tmp_path / "theirs")
    corpus = Corpus.open(workspace.artefact("prepare").path)
    paths = {each.id: each.path for each in map(corpus.manifest.__getitem__, range(24))}
    for id_, _, hypothesis, _ in (line.split("\t") for line in lines):
        assert recogniser.transcribe(paths[id_]) == hypothesis
    task = PhoneTask()
    task.adopt(stored.extra, "there")
    config = DecodingConfig(kind="beam", lm="train", lm_order=2)
    assert task.decoder(config, ["a b", "b a"], MODEL_GRID, "key") is not None
    (tmp_path / "words.txt").write_text("AB a b\n")
    config = DecodingConfig(kind="lexicon", lexicon=str(tmp_path / "words.txt"))
    with pytest.raises(ConfigError, match="this task is scored in phones"):
        task.decoder(config, None, MODEL_GRID, "key")
    with pytest.raises(ArtefactError, match="its symbols are phones"):
        CtcTask().adopt(stored.extra, "there")
    assert json.loads((folder / "config.json").read_text())["extra"]["phones"] is True
