"""`hubert-pretrain align-phones` on speech whose phones are known exactly."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.corpora.speech_synthesis.pronunciation import phones_of, pronounce
from hubert_pretrain.corpora.synthetic import Synthetic
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.alignments import AlignmentFiles, AlignmentOptions
from hubert_pretrain.frames import seconds
from hubert_pretrain.tools import align_phones

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[SourceUtterance]:
    """Two minutes of a voice, with transcripts beside the audio."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("speech")
    corpus = Synthetic(minutes=2, voices=[{"name": "ann", "voice": "gmw/en-US+f1"}], workers=1)
    found = list(corpus.utterances(folder))
    for each in found:
        Path(each.path).with_suffix(".txt").write_text(each.text)
    return found


def edges(phones: list[tuple[str, int, int]]) -> np.ndarray:
    return np.array([seconds(phone[1]) for phone in phones if phone[0] != "sil"])


@pytest.mark.parametrize("form", ["ctm", "textgrid"])
def test_boundaries_of_known_phones(
    speech: list[SourceUtterance],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    if form == "textgrid":
        pytest.importorskip("praatio")
        monkeypatch.setattr(align_phones, "GAUSSIANS", (1,))
    out = tmp_path / "out"
    home = Path(speech[0].path).parent
    assert align_phones.main([str(home), str(out), "--format", form]) == 0
    assert f"aligned      {len(speech)} of {len(speech)} utterances" in capsys.readouterr().out
    files = AlignmentFiles(AlignmentOptions(str(out)))
    distances = []
    for each in speech:
        found = files.find(each.id)
        assert found is not None
        assert each.phones is not None
        true = edges(list(each.phones))
        distances += abs(true[:, None] - edges(list(found))).min(1).tolist()
    assert np.median(distances) < 0.015
    assert np.mean(np.array(distances) < 0.05) > 0.9
    listed = (out / "scores.tsv").read_text().splitlines()[1:]
    scores = [float(line.split("\t")[1]) for line in listed]
    assert len(scores) == len(speech)
    assert scores == sorted(scores)


def test_what_cannot_be_aligned_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("espeakng_loader")
    for name, text in (("short", "a very long sentence of many words"), ("dumb", "...")):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(bytes(2 * 4000))
        (tmp_path / f"{name}.txt").write_text(text)
    assert align_phones.main([str(tmp_path), str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert "dumb: has no words that espeak-ng speaks; leave it out" in shown
    assert "short: its phones need" in shown
    assert "none of the 2 utterances could be aligned" in shown


def test_phones_are_those_of_the_language() -> None:
    pytest.importorskip("espeakng_loader")
    english, silent = pronounce(["THE FIRE, out of it", ""], "gmw/en-US")
    german = pronounce(["ich"], "gmw/de")[0]
    assert english[:2] == [["ð", "ə"], ["f", "aɪ", "ɚ"]]
    assert english[2][:2] == ["aʊ", "ɾ"]
    assert silent == []
    assert german == [["ɪ", "ç"]]
    with pytest.raises(DataError, match="choose one of them"):
        pronounce(["a"], "gmw/en-XX")


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("f_ˈɔːɹ", ["f", "ɔ", "ɹ"]),
        ("ˈæ_p_əl", ["æ", "p", "ə", "l"]),
        ("tʃ_ˈɜː_tʃ", ["tʃ", "ɜ", "tʃ"]),
        ("b_ˈʌ_ʔ_n̩", ["b", "ʌ", "t", "n"]),
        ("ð_ɪ_", ["ð", "ɪ"]),
        ("_", []),
    ],
)
def test_phones_of_a_word(word: str, phones: list[str]) -> None:
    assert phones_of(word) == phones
