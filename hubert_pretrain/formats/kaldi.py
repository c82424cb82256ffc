"""Data directories of Kaldi: wav.scp, and as there are any segments, text, utt2spk or spk2utt, and
utt2dur (lengths of whole files).

A line of wav.scp may be a command; see commands.py. Labels and corpus names have no place here. An
utterance whose speaker is called as itself has none, which is Kaldi's way to say so. Words of a
text are separated by single blanks.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError, did_you_mean
from hubert_pretrain.formats.record import Header, Reading, Record, header_of
from hubert_pretrain.formats.text import (
    filled_lines,
    number_of,
    rounding_of,
    safe_name,
    seconds_to_samples,
    writing,
)
from hubert_pretrain.frames import SAMPLE_RATE

_FLAC_LETTERS = re.compile("-[cds]+")
_ALONE = {
    "flac": {"--stdout", "--decode", "--silent"},
    "cat": set[str](),
    "sph2pipe": {"-p"},
    "sox": {"-", "-R", "-V0", "-V1", "-q"},
    "ffmpeg": {"-", "pipe:1", "-nostdin", "-y", "-vn", "-hide_banner"},
}
"""Program -> words that change nothing that we do not do ourselves: mono, 16 kHz."""
_WITH_VALUE = {
    "sph2pipe": {"-f": "wav|rif"},
    "sox": {
        "-t": "wav|flac|sph|mp3|ogg|opus",
        "-r": r"\d+k?",
        "-b": r"\d+",
        "-e": "[a-z-]+",
        "-c": "1",
        "rate": r"\d+k?",
    },
    "ffmpeg": {
        "-v": r"\w+",
        "-loglevel": r"\w+",
        "-f": "wav",
        "-ar": r"\d+",
        "-ac": "1",
        "-acodec": r"pcm_\w+",
        "-c:a": r"pcm_\w+",
    },
}
"""Program -> word that takes a value -> what the value may be."""
_QUOTED = re.compile(r"""'[^']*'|"[^"$`\\]*\"""")
_SHELL = re.compile(r"[;&|<>`$(){}\[\]*?~#!\\\n\"']")


def path_of_command(command: str, place: str) -> str:
    """The audio file that `command` (without its last "|") decodes to its output.

    >>> path_of_command("flac -c -d -s '/speech/a b.flac'", "wav.scp: line 1")
    '/speech/a b.flac'

    Raises DataError for every command but flac, sox, sph2pipe, ffmpeg and cat that do nothing else.
    """
    paths = None if _SHELL.search(_QUOTED.sub("", command)) else _paths(shlex.split(command))
    if paths is None or len(paths) != 1 or not paths[0]:
        raise DataError(
            f"{place}: is the command {command.strip()[:80]!r}, which would be code to execute; expected a path, or one of "
            "flac, sox, sph2pipe, ffmpeg and cat that only decodes a file: write the audio to files (wav-copy) and name those"
        )
    return paths[0]


def _paths(words: list[str]) -> list[str] | None:
    """The words that are no flag; None when there is one that we do not know."""
    program = os.path.basename(words[0]) if words else ""
    if program not in _ALONE:
        return None
    paths = []
    rest = iter(words[1:])
    for word in rest:
        values = _WITH_VALUE.get(program, {})
        if program == "ffmpeg" and word == "-i":
            paths.append(next(rest, ""))
        elif word in values:
            if not re.fullmatch(values[word], next(rest, "")):
                return None
        elif word in _ALONE[program] or (program == "flac" and _FLAC_LETTERS.fullmatch(word)):
            continue
        elif word.startswith("-") or program == "ffmpeg":
            return None
        else:
            paths.append(word)
    return paths


def command_for(path: str) -> str:
    """What stands in a wav.scp for a file: its path where Kaldi reads it itself, else the usual
    command that decodes it.
    """
    if path.lower().endswith(".wav"):
        return path
    decoder = (
        "flac -c -d -s {} |"
        if path.lower().endswith(".flac")
        else "ffmpeg -v error -i {} -f wav -ac 1 - |"
    )
    return decoder.format(shlex.quote(path))


WAVES = "wav.scp"
SEGMENTS = "segments"
TEXT = "text"
SPEAKERS = "utt2spk"
UTTERANCES = "spk2utt"
DURATIONS = "utt2dur"

_TO_THE_END = "-1"
_ARCHIVE = re.compile(r".*\.(ark|scp)(\.gz)?:\d+(\[.*\])?")


def read(folder: Path, reading: Reading) -> Iterator[Record]:
    """Every utterance of a data directory: a line of segments, or of wav.scp when there are no
    segments.

    Raises:
        DataError: a command that is not plainly decoding, an archive, an id that one file has and
        another has not, an id twice, a segment
            that ends before it begins.
    """
    texts = _table(folder / TEXT, texts=True)
    speakers = _speakers(folder)
    used = 0
    for place, id, path, length in (
        _segments(folder, reading) if (folder / SEGMENTS).is_file() else _waves(folder, reading)
    ):
        used += 1
        speaker = _of(speakers, id, place, folder / SPEAKERS)
        yield (
            place,
            SourceUtterance(
                id=id,
                path=path,
                **length,  # type: ignore[arg-type]
                split=reading.split,
                speaker="" if speaker == id else speaker,
                text=_of(texts, id, place, folder / TEXT),
            ),
        )
    if not used:
        raise DataError(
            f"{folder}: its {SEGMENTS if (folder / SEGMENTS).is_file() else WAVES} is empty; expected '<utterance> <path>' lines"
        )
    if texts is not None and len(texts) > used:
        known = {
            utterance
            for _, utterance, *_ in (
                _segments(folder, reading)
                if (folder / SEGMENTS).is_file()
                else _waves(folder, reading)
            )
        }
        other = next(id for id in texts if id not in known)
        raise DataError(
            f"{folder / TEXT}: has a text of {other!r}, which has no audio{did_you_mean(other, sorted(known)[:1000])}; remove the line"
        )


_Part = tuple[str, str, str, dict[str, "int | None"]]
"""(place, id, path, what is known of its length: fields of a utterance)"""


def _waves(folder: Path, reading: Reading) -> Iterator[_Part]:
    durations = _table(folder / DURATIONS)
    for place, id, value in _pairs(folder / WAVES):
        stated: dict[str, int | None] = {}
        if durations is not None:
            seconds = _of(durations, id, place, folder / DURATIONS)
            where = f"{folder / DURATIONS}: utterance {id!r}"
            stated = {
                "expected_samples": seconds_to_samples(number_of(seconds, where, "duration")),
                "expected_within": rounding_of(seconds),
            }
        yield place, id, _path(value, place, reading, folder), stated


def _segments(folder: Path, reading: Reading) -> Iterator[_Part]:
    recordings: dict[str, tuple[str, str]] = {}
    for place, id, value in _pairs(folder / WAVES):
        if recordings.setdefault(id, (place, value)) != (place, value):
            raise DataError(
                f"{place} repeats recording {id!r} of {recordings[id][0]}; remove one of the two lines"
            )
    for place, id, value in _pairs(folder / SEGMENTS):
        fields = value.split()
        if len(fields) != 3:
            raise DataError(
                f"{place} has {1 + len(fields)} fields, expected '<utterance> <recording> <start> <end>' in seconds; mend the line"
            )
        recording, start, end = fields
        if recording not in recordings:
            raise DataError(
                f"{place}: recording {recording!r} is not in {folder / WAVES}; add it, or remove the line"
            )
        first = seconds_to_samples(number_of(start, place, "start"))
        last = (
            None
            if _float_or_none(end) == float(_TO_THE_END)
            else seconds_to_samples(number_of(end, place, "end"))
        )
        if last is not None and last <= first:
            raise DataError(
                f"{place}: ends at {end} s, which is not after its start at {start} s; mend the line"
            )
        where, wave = recordings[recording]
        yield (
            place,
            id,
            _path(wave, where, reading, folder),
            {"start": first, "num_samples": None if last is None else last - first},
        )


def _float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _path(value: str, place: str, reading: Reading, folder: Path) -> str:
    value = value.strip()
    if value.endswith("|"):
        value = path_of_command(value[:-1], place)
    if value == "-" or value.startswith("|") or _ARCHIVE.fullmatch(value):
        raise DataError(
            f"{place}: {value[:80]!r} is no audio file; expected a path: write the audio to files (wav-copy) and name those"
        )
    return reading.locate(value, folder)


def _pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, key, the rest) of every line. Raises DataError for a key alone, except in the file of
    texts.
    """
    for number, line in filled_lines(path):
        key, *rest = line.split(maxsplit=1)
        if not rest and path.name != TEXT:
            raise DataError(
                f"{path}: line {number} is {line.strip()!r} alone, expected a value after the name; mend the line"
            )
        yield f"{path}: line {number}", key, rest[0].strip() if rest else ""


def _table(path: Path, texts: bool = False) -> dict[str, str] | None:
    """All lines by key; None when there is no such file. Raises DataError for a key that stands
    twice.
    """
    if not path.is_file():
        return None
    table: dict[str, str] = {}
    for place, key, value in _pairs(path):
        if key in table:
            raise DataError(f"{place} repeats {key!r}; remove one of the two lines")
        table[key] = " ".join(value.split()) if texts else value
    return table


def _speakers(folder: Path) -> dict[str, str] | None:
    if (folder / SPEAKERS).is_file():
        return _table(folder / SPEAKERS)
    by_speaker = _table(folder / UTTERANCES)
    return (
        None
        if by_speaker is None
        else {id: speaker for speaker, ids in by_speaker.items() for id in ids.split()}
    )


def _of(table: dict[str, str] | None, id: str, place: str, path: Path) -> str:
    if table is None:
        return ""
    if id not in table:
        raise DataError(
            f"{path}: has no line of utterance {id!r} ({place}); add it, remove the utterance, or remove the whole file"
        )
    return table[id]


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes `<split>/` data directories, each sorted as Kaldi wants it (by bytes).

    Raises DataError for ids and speakers with blanks, and for audio inside shards.
    """
    splits: dict[str, list[SourceUtterance]] = defaultdict(list)
    for utterance in utterances():
        _refuse_unspeakable(utterance)
        splits[utterance.split].append(utterance)
    for split, members in splits.items():
        _write_folder(target / split, sorted(members, key=lambda utterance: utterance.id.encode()))


def _refuse_unspeakable(utterance: SourceUtterance) -> None:
    for name, value in (("id", utterance.id), ("speaker", utterance.speaker)):
        if re.search(r"\s", value) or (name == "id" and not value):
            raise DataError(
                f"utterance {utterance.id!r}: its {name} {value!r} holds blanks, which separate fields in Kaldi; rename it"
            )
    if utterance.offset >= 0 or re.search(r"[\n\r]|\s$", str(utterance.path)):
        raise DataError(
            f"utterance {utterance.id!r}: {str(utterance.path)!r} is a shard, or its name has a line break or a blank at its end; use huggingface"
        )


def _write_folder(folder: Path, utterances: list[SourceUtterance]) -> None:
    headers = {str(utterance.path): header_of(utterance) for utterance in utterances}
    whole = len(headers) == len(utterances) and all(
        headers[str(utterance.path)].is_whole(utterance) for utterance in utterances
    )
    recordings = {
        str(utterance.path): utterance.id if whole else safe_name(str(utterance.path))
        for utterance in utterances
    }
    _put(folder / WAVES, {id: command_for(path) for path, id in recordings.items()})
    lengths = {
        utterance.id: headers[str(utterance.path)].length_of(utterance) for utterance in utterances
    }
    _put(folder / DURATIONS, {id: f"{length / SAMPLE_RATE:.6f}" for id, length in lengths.items()})
    (folder / SEGMENTS).unlink(missing_ok=True)
    if not whole:
        _put(
            folder / SEGMENTS,
            {utterance.id: _segment(utterance, recordings, headers) for utterance in utterances},
        )
    if any(utterance.text.strip() for utterance in utterances):
        _put(
            folder / TEXT,
            {utterance.id: " ".join(utterance.text.split()) for utterance in utterances},
        )
    by_speaker: dict[str, list[str]] = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker or utterance.id].append(utterance.id)
    _put(
        folder / SPEAKERS,
        {utterance.id: utterance.speaker or utterance.id for utterance in utterances},
    )
    _put(folder / UTTERANCES, {speaker: " ".join(ids) for speaker, ids in by_speaker.items()})


def _segment(
    utterance: SourceUtterance, recordings: dict[str, str], headers: dict[str, Header]
) -> str:
    path = str(utterance.path)
    if headers[path].is_whole(utterance):
        return f"{recordings[path]} 0 {_TO_THE_END}"
    end = utterance.start + headers[path].length_of(utterance)
    return f"{recordings[path]} {utterance.start / SAMPLE_RATE:.6f} {end / SAMPLE_RATE:.6f}"


def _put(path: Path, table: dict[str, str]) -> None:
    with writing(path) as file:
        for key in sorted(table, key=str.encode):
            file.write(f"{key} {table[key]}\n".replace(" \n", "\n"))
