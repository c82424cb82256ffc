"""SubRip and WebVTT."""

from __future__ import annotations

import re
from typing import NamedTuple

from hubert_pretrain.formats.subtitles import cues, srt, vtt


class Word(NamedTuple):
    text: str
    start: float
    end: float


def spoken(text: str, seconds_per_word: float = 0.5, start: float = 0.0) -> list[Word]:
    times = [start + number * seconds_per_word for number in range(len(text.split()) + 1)]
    return list(map(Word, text.split(), times[:-1], times[1:]))


def test_a_file_of_each_kind() -> None:
    words = [*spoken("GOOD MORNING"), *spoken("A & B <C>", start=3725.25)]
    assert srt(words) == (
        "1\n00:00:00,000 --> 00:00:01,000\nGOOD MORNING\n\n"
        "2\n01:02:05,250 --> 01:02:07,250\nA & B <C>\n"
    )
    assert vtt(words) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nGOOD MORNING\n\n"
        "01:02:05.250 --> 01:02:07.250\nA &amp; B &lt;C&gt;\n"
    )
    assert srt([]) == ""
    assert vtt([]) == "WEBVTT\n"


def test_times_carry_over() -> None:
    assert "00:59:59,999 --> 01:00:00,000" in srt([Word("X", 3599.999, 3599.9996)])


def test_every_word_is_in_one_subtitle_that_can_be_read() -> None:
    words = spoken("it was the best of times it was the worst of times " * 20, 0.31)
    found = list(cues(words))
    assert [word for cue in found for word in cue] == words
    assert all(cue[-1].end - cue[0].start <= 7.0 for cue in found)
    for block in srt(words).split("\n\n"):
        _, _, *lines = block.strip().split("\n")
        assert 1 <= len(lines) <= 2
        assert all(len(line) <= 50 for line in lines)


def test_a_pause_and_a_word_that_is_too_long() -> None:
    words = [
        Word("A", 0.0, 0.2),
        Word("B", 0.9, 1.0),
        Word("C", 2.0, 2.1),
        Word("D" * 200, 2.2, 30),
    ]
    assert [[word.text[:1] for word in cue] for cue in cues(words)] == [["A", "B"], ["C"], ["D"]]
    assert re.search(r"\nD{200}\n", srt(words))
