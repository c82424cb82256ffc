from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hubert_pretrain.corpora.speech_synthesis.espeak import SILENCE, VOWELS
from hubert_pretrain.corpora.speech_synthesis.sentences import sentences, transcript
from hubert_pretrain.corpora.synthetic import Synthetic
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.frames import SAMPLE_RATE

pytest.importorskip("espeakng_loader")

VOICES = [
    {"name": "amy", "voice": "gmw/en-US+f1"},
    {"name": "ben", "voice": "gmw/en-GB-scotland+m3", "words_per_minute": 175, "pitch": 40},
]
SMALL: dict[str, Any] = {"minutes": 0.2, "voices": VOICES, "workers": 2}  # six utterances


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="module")
def utterances(folder: Path) -> list[SourceUtterance]:
    return list(Synthetic(**SMALL).utterances(folder))


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_every_voice_is_in_every_split_and_no_sentence_twice(
    utterances: list[SourceUtterance],
) -> None:
    assert (
        len(utterances)
        == len({utterance.id for utterance in utterances})
        == len({utterance.text for utterance in utterances})
        == 6
    )
    assert {(utterance.speaker, utterance.split) for utterance in utterances} == {
        (v, s) for v in ("amy", "ben") for s in ("train", "valid", "test")
    }
    assert all(utterance.label == utterance.speaker for utterance in utterances)


def test_transcripts_are_letters_apostrophes_and_single_spaces(
    utterances: list[SourceUtterance],
) -> None:
    assert all(re.fullmatch(r"[A-Z']+( [A-Z']+)*", utterance.text) for utterance in utterances)
    assert transcript("It's two o'clock, isn't it?") == "IT'S TWO O'CLOCK ISN'T IT"


def test_phones_cover_the_file_and_match_its_silence(utterances: list[SourceUtterance]) -> None:
    loudness: dict[str, list[float]] = {"silence": [], "vowel": []}
    for utterance in utterances:
        waveform, rate = soundfile.read(utterance.path, dtype="float32")
        assert rate == SAMPLE_RATE
        assert waveform.ndim == 1
        assert utterance.phones is not None
        assert utterance.phones[0][:2] == (SILENCE, 0)
        assert utterance.phones[-1][0] == SILENCE
        assert utterance.phones[-1][2] == len(waveform)
        for (_, _, end), (_, start, _) in zip(
            utterance.phones[:-1], utterance.phones[1:], strict=True
        ):
            assert end == start
        for name, start, end in utterance.phones:
            kind = "silence" if name == SILENCE else name
            if name.startswith(VOWELS):
                kind = "vowel"
            loudness.setdefault(kind, []).append(float(np.sqrt(np.mean(waveform[start:end] ** 2))))
    # 40 dB between the loudest pause and the faintest vowel.
    assert max(loudness["silence"]) < 0.01 * min(loudness["vowel"])
    phones_per_letter = [len(each.phones or []) / len(each.text) for each in utterances]
    assert 0.25 < np.mean(phones_per_letter) < 1.2


def test_boundaries_after_a_pause_are_exact(utterances: list[SourceUtterance]) -> None:
    """The first sound of a phone that follows a long pause lies within a few milliseconds of where
    the phone begins.
    """
    for utterance in utterances:
        waveform, _ = soundfile.read(utterance.path, dtype="float32")
        for (before, begin, start), (_, _, end) in zip(
            utterance.phones or [], (utterance.phones or [])[1:], strict=False
        ):
            if before == SILENCE and start - begin > 0.04 * SAMPLE_RATE:
                loud = np.flatnonzero(
                    np.abs(waveform[begin:end]) > 0.02 * np.abs(waveform[start:end]).max()
                )
                assert abs(begin + loud[0] - start) < 0.006 * SAMPLE_RATE


def test_the_same_bytes_whatever_the_number_of_workers(
    folder: Path, utterances: list[SourceUtterance], tmp_path: Path
) -> None:
    list(Synthetic(**SMALL | {"workers": 1}).utterances(tmp_path))
    assert contents(tmp_path) == contents(folder)


def test_complete_files_stay_and_others_are_rendered_again(
    folder: Path, utterances: list[SourceUtterance], tmp_path: Path
) -> None:
    list(Synthetic(**SMALL).utterances(tmp_path))
    wavs = sorted(tmp_path.rglob("*.wav"))
    modified = wavs[4].stat().st_mtime_ns
    wavs[0].unlink()
    wavs[1].write_bytes(wavs[1].read_bytes()[:1000])
    wavs[2].with_suffix(".json").unlink()
    wavs[3].with_suffix(".json").write_text('{"recipe": ')
    wavs[0].with_name(f".{wavs[0].name}.1.tmp").write_bytes(b"half")
    again = list(Synthetic(**SMALL).utterances(tmp_path))
    assert contents(tmp_path) == contents(folder)
    assert wavs[4].stat().st_mtime_ns == modified
    assert [(one.id, one.text, one.phones) for one in again] == [
        (one.id, one.text, one.phones) for one in utterances
    ]


def test_a_killed_run_continues_to_the_same_result(
    folder: Path, utterances: list[SourceUtterance], tmp_path: Path
) -> None:
    code = "from pathlib import Path; from hubert_pretrain.corpora.synthetic import Synthetic; "
    code += f"list(Synthetic(**{SMALL}).utterances(Path({str(tmp_path)!r})))"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not list(tmp_path.rglob("*.wav")) and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.rglob("*.wav"))
    list(Synthetic(**SMALL).utterances(tmp_path))
    assert contents(tmp_path) == contents(folder)


def test_voices_of_the_test_split_are_heard_in_no_other() -> None:
    lines = Synthetic(**SMALL, test_voices=1).script()
    assert {line.split for line in lines if line.voice.name == "ben"} == {"test"}
    assert {line.split for line in lines if line.voice.name == "amy"} == {"train", "valid"}
    before = [line for line in Synthetic(**SMALL).script() if line.voice.name == "ben"]
    assert [line.sentence for line in lines if line.split == "test"] == [
        line.sentence for line in before
    ]
    with pytest.raises(ConfigError, match="test_voices=2; expected 0 to 1"):
        Synthetic(**SMALL, test_voices=2)


def test_another_seed_gives_other_sentences() -> None:
    texts = [
        {line.sentence for line in Synthetic(**SMALL | {"seed": seed}).script()} for seed in (0, 1)
    ]
    assert not texts[0] & texts[1]


def test_the_default_corpus_has_the_promised_size(repository: Path) -> None:
    data = OmegaConf.load(repository / "conf" / "data" / "synthetic.yaml")
    corpus = instantiate(OmegaConf.create({"data": {**data, "workers": 1}}).data.corpus)
    lines = corpus.script()
    assert len(corpus.voices) >= 36
    assert len({line.sentence for line in lines}) == len(lines) >= 250
    assert 0.8 < np.mean([line.split == "train" for line in lines]) < 0.9
    known, new = corpus.voices[: -corpus.test_voices], corpus.voices[-corpus.test_voices :]
    assert {(line.voice.name, line.split) for line in lines} == {
        *((voice.name, split) for voice in known for split in ("train", "valid")),
        *((voice.name, "test") for voice in new),
    }
    variants = [{voice.voice.split("+")[1] for voice in part} for part in (known, new)]
    assert not variants[0] & variants[1], "a test voice is a variant that training hears"


def test_sentences_never_repeat_and_use_a_moderate_vocabulary() -> None:
    some = list(islice(sentences(seed=3), 400))
    words = {word for sentence in some for word in transcript(sentence).split()}
    assert len(set(some)) == 400
    assert 300 < len(words) < 600
    assert not re.search(r"[{}]", " ".join(some))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minutes": 0}, "minutes=0"),
        ({"voices": []}, "at least one"),
        ({"voices": [VOICES[0], VOICES[0]]}, "different names"),
        ({"voices": [{"name": "amy", "voise": "gmw/en"}]}, "did you mean 'voice'"),
        ({"voices": [{"name": "amy"}]}, "at least name and voice"),
        ({"num_voices": 3}, "lists 2"),
        ({"valid_fraction": 0.6, "test_fraction": 0.5}, "less than 1"),
    ],
)
def test_invalid_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Synthetic(**SMALL | change)


def test_an_unknown_voice_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    corpus = Synthetic(**SMALL | {"voices": [{"name": "amy", "voice": "gmw/en-UK"}]})
    with pytest.raises(DataError, match="en-UK"):
        list(corpus.utterances(tmp_path))
    assert not list(tmp_path.iterdir())
