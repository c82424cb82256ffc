from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hubert_pretrain.corpora.speech_synthesis import espeak
from hubert_pretrain.corpora.speech_synthesis.espeak import SILENCE, Phone, Speech
from hubert_pretrain.errors import DataError


def speech(waveform: list[int], events: list[tuple[str, int]]) -> Speech:
    return Speech(waveform=np.array(waveform, np.int16), sample_rate=100, events=events)


def test_phone_names_lose_stress_and_length_but_keep_diphthongs() -> None:
    symbols = ("ˈaɪ", "uː", "ˌɔːɹ", "tʃ", "t̪", "a:", "")
    assert [espeak.phone_name(symbol) for symbol in symbols] == [
        "aɪ",
        "u",
        "ɔɹ",
        "tʃ",
        "t",
        "a",
        SILENCE,
    ]


def test_a_stop_begins_with_its_closure() -> None:
    spoken = speech([1] * 10 + [0] * 5 + [1] * 5 + [1] * 5, [("a", 0), ("t", 15), ("i", 20)])
    assert spoken.phones() == [Phone("a", 0, 10), Phone("t", 10, 20), Phone("i", 20, 25)]


def test_a_stop_after_a_pause_begins_with_its_release() -> None:
    spoken = speech([0] * 15 + [1] * 10, [("", 0), ("t", 15), ("i", 20)])
    assert spoken.phones() == [Phone(SILENCE, 0, 15), Phone("t", 15, 20), Phone("i", 20, 25)]


def test_a_gap_before_another_sound_is_a_pause_when_it_is_long_enough() -> None:
    spoken = speech([1] * 10 + [0] * 5 + [1] * 9 + [0] + [1] * 5, [("a", 0), ("s", 15), ("i", 25)])
    assert spoken.phones() == [
        Phone("a", 0, 10),
        Phone(SILENCE, 10, 15),
        Phone("s", 15, 25),
        Phone("i", 25, 30),
    ]


def test_a_nameless_sound_is_a_glide_or_a_schwa_and_a_nameless_silence_a_pause() -> None:
    spoken = speech(
        [1] * 20 + [0] * 10,
        [("i", 0), ("", 5), ("a", 10), ("m", 12), ("", 14), ("ɹ", 17), ("", 20)],
    )
    assert [phone.name for phone in spoken.phones()] == ["i", "j", "a", "m", "ə", "ɹ", SILENCE]


def test_marks_without_length_are_dropped_and_pauses_joined() -> None:
    spoken = speech([1] * 10 + [0] * 10, [("a", 0), ("ʔ", 10), ("", 10), ("", 15)])
    assert spoken.phones() == [Phone("a", 0, 10), Phone(SILENCE, 10, 20)]


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(DataError, match=r"pip install espeakng-loader"):
        espeak.locate()


@pytest.mark.parametrize(
    ("voice", "message"),
    [
        ("gmw/en-UK+f1", r"no 'gmw/en-UK'.*did you mean"),
        ("gmw/en-US+f9", r"no 'f9'.*did you mean"),
        ("gmw/en-US+f3", "echo"),
    ],
)
def test_an_invalid_voice_is_refused(voice: str, message: str) -> None:
    pytest.importorskip("espeakng_loader")
    with pytest.raises(DataError, match=message):
        espeak.check_voice(voice, espeak.locate()[1])


def in_a_fresh_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_the_same_words_give_the_same_samples_in_every_process(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    code = """
import hashlib, json
from hubert_pretrain.corpora.speech_synthesis import espeak
one = espeak.speak("The judge saw a boy.", voice="gmw/en+f1", words_per_minute=160)
try:
    espeak.speak("Again.", voice="gmw/en+f1", words_per_minute=160)
except espeak.HubertPretrainError as error:
    refused = str(error)
digest = hashlib.sha256(one.waveform.tobytes()).hexdigest()
print(json.dumps([one.sample_rate, digest, one.phones(), refused]))
"""
    first = json.loads(in_a_fresh_process(code))
    second = json.loads(in_a_fresh_process(code))
    assert first == second
    rate, _, phones, refused = first
    assert rate == 22_050
    assert [name for name, _, _ in phones if name != SILENCE] == [
        "ð",
        "ə",
        "dʒ",
        "ʌ",
        "dʒ",
        "s",
        "ɔ",
        "ɐ",
        "b",
        "ɔɪ",
    ]
    assert "already spoken" in refused
