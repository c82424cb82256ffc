"""`hubert-pretrain align` and decoding settings of `transcribe`, with a model of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.decoding.arpa import write_arpa
from hubert_pretrain.decoding.estimate import estimate
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.formats.alignments import AlignmentFiles, AlignmentOptions
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.tools import align, transcribe
from tests.finetune.conftest import TINY, corpus  # noqa: F401

TEXTS = ["ABCD AB", "BAD CAD"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vocabulary = Vocabulary.of_texts(TEXTS)
    extra = {"vocabulary": list(vocabulary.symbols), "text_rules": {"case": "upper"}}
    save_model(tmp_path / "asr", Hubert(TINY), head=CTCHead(16, len(vocabulary)), extra=extra)
    return tmp_path / "asr"


def speech(path: Path, text: str | None, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(len(path.name))
    soundfile.write(path, draw.normal(0, 0.1, int(seconds * SAMPLE_RATE)), SAMPLE_RATE)
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return path


@pytest.mark.parametrize("form", ["ctm", "textgrid"])
def test_alignments_of_a_prepared_corpus_are_read_back(
    model: Path,
    corpus: Corpus,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    out = tmp_path / "out"
    words = [str(model), str(corpus.folder), str(out), "--format", form, "--split", "valid"]
    assert align.main(words) == 0
    rows = corpus.manifest.rows("valid")
    shown = capsys.readouterr().out
    assert f"aligned      {len(rows)} of {len(rows)} utterances" in shown
    assert " characters, " in shown
    if form == "textgrid":
        pytest.importorskip("praatio")
    tier = "symbols" if form == "textgrid" else "auto"
    files = AlignmentFiles(AlignmentOptions(str(out), tier=tier))
    for row in rows:
        utterance = corpus.manifest[int(row)]
        phones = files.find(utterance.id)
        assert phones is not None
        assert "".join(name for name, _, _ in phones) == utterance.text.replace(" ", "")
        assert phones[-1][2] <= utterance.num_samples
    header, *scores = (out / "scores.tsv").read_text().splitlines()
    assert header == "id\tscore"
    values = [float(line.split("\t")[1]) for line in scores]
    assert len(values) == len(rows)
    assert values == sorted(values)


def test_files_with_texts_beside_them(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "speech"
    speech(folder / "one.wav", "abcd, ab!")
    speech(folder / "deep" / "two.wav", "BÄD")
    speech(folder / "three.wav", None)
    out = tmp_path / "out"
    assert align.main([str(model), str(folder), str(out), "--units", "words"]) == 0
    lines = [line.split() for line in (out / "alignments.ctm").read_text().splitlines()]
    assert [(line[0], line[4]) for line in lines] == [
        ("deep/two", "BD"),
        ("one", "ABCD"),
        ("one", "AB"),
    ]
    assert "characters that the model has not: 'Ä' x 1" in capsys.readouterr().out


def test_utterances_that_do_not_fit_are_reported(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "speech"
    speech(folder / "short.wav", "ABCD " * 20, seconds=0.5)
    speech(folder / "empty.wav", "12 ?")
    speech(folder / "good.wav", "AB")
    assert align.main([str(model), str(folder), str(tmp_path / "out")]) == 1
    shown = capsys.readouterr()
    assert "short: the text needs 99 frames, the audio has 24; check that they" in shown.err
    assert "empty: has none of the characters of '12' that the model knows" in shown.err
    assert "aligned      1 of 3 utterances" in shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{here}/none", "{here}/out"], "no such file or folder"),
        (["{here}/alone.wav", "{here}/out"], "alone.wav: has no transcript beside it; write it"),
        (["{corpus}", "{here}/out", "--split", "vaild"], "no utterances in split 'vaild', it has"),
        (["{corpus}", "{here}/full"], "holds mine.txt of something else"),
    ],
)
def test_refusals(
    model: Path,
    corpus: Corpus,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    speech(tmp_path / "alone.wav", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    given = [word.format(here=tmp_path, corpus=corpus.folder) for word in words]
    assert align.main([str(model), *given]) == 1
    assert message in capsys.readouterr().err


def test_transcribe_takes_settings_of_decoding(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = speech(tmp_path / "speech.wav", None)
    write_arpa(tmp_path / "lm.arpa", estimate(TEXTS, 2))
    lm = f"decoding.lm={tmp_path / 'lm.arpa'}"
    words = [str(model), str(path), "--format", "jsonl", "--set", "decoding.kind=lexicon", lm]
    more = ["decoding.workers=1", "decoding.hot_words=DAB,CAB", "decoding.word_score=6"]
    assert transcribe.main([*words, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    known = {"DAB", "CAB", *" ".join(TEXTS).split()}
    assert found["text"]
    assert set(found["text"].split()) <= known
    assert [word["word"] for word in found["words"]] == found["text"].split()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("decoding.kid=beam", "--set decoding.kid: no such key (did you mean 'kind'?)"),
        ("decoding.kind=bean", "decoding.kind='bean': expected one of greedy, beam, lexicon"),
        ("decoding.beam_size=many", "decoding.beam_size='many': expected a number above 0"),
        ("decoding.lm=train", "decoding.lm=train with decoding.kind=greedy"),
    ],
)
def test_settings_of_decoding_that_cannot_be(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    path = speech(tmp_path / "speech.wav", None)
    assert transcribe.main([str(model), str(path), "--set", setting]) == 2
    assert message in capsys.readouterr().err
