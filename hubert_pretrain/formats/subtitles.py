"""Subtitles of words with times: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

MOST_CHARACTERS = 84
"""Of a subtitle: two lines of 42, as broadcasters have them."""
MOST_SECONDS = 7.0
"""Longest time that a subtitle stands."""
PAUSE_SECONDS = 0.8
"""A longer pause begins a new one."""


class TimedWord(Protocol):
    """A word with its times in seconds."""

    @property
    def text(self) -> str:
        """The word."""
        ...

    @property
    def start(self) -> float:
        """First second."""
        ...

    @property
    def end(self) -> float:
        """Last second."""
        ...


def srt(words: Sequence[TimedWord]) -> str:
    """The content of a SubRip file."""
    return "\n".join(
        f"{number}\n{_times(cue, ',')}\n{_lines(cue)}\n"
        for number, cue in enumerate(cues(words), start=1)
    )


def vtt(words: Sequence[TimedWord]) -> str:
    """The content of a WebVTT file."""
    escape = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}
    parts = [f"{_times(cue, '.')}\n{_lines(cue).translate(escape)}\n" for cue in cues(words)]
    return "\n".join(["WEBVTT\n", *parts])


def cues(words: Sequence[TimedWord]) -> Iterator[list[TimedWord]]:
    """The words of each subtitle."""
    cue: list[TimedWord] = []
    for word in words:
        if cue and _begins_another(cue, word):
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _begins_another(cue: list[TimedWord], word: TimedWord) -> bool:
    characters = sum(len(each.text) + 1 for each in cue) + len(word.text)
    return (
        word.start - cue[-1].end > PAUSE_SECONDS
        or word.end - cue[0].start > MOST_SECONDS
        or characters > MOST_CHARACTERS
    )


def _lines(cue: list[TimedWord]) -> str:
    """The text in one line, or in two of about equal length."""
    text = " ".join(word.text for word in cue)
    if len(text) <= MOST_CHARACTERS // 2:
        return text
    middle = len(text) // 2
    spaces = [place for place, character in enumerate(text) if character == " "]
    if not spaces:
        return text
    place = min(spaces, key=lambda each: abs(each - middle))
    return f"{text[:place]}\n{text[place + 1 :]}"


def _times(cue: list[TimedWord], point: str) -> str:
    return f"{_clock(cue[0].start, point)} --> {_clock(cue[-1].end, point)}"


def _clock(seconds: float, point: str) -> str:
    """`01:02:03,450`."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return (
        f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}"
        f"{point}{milliseconds % 1000:03}"
    )
