"""Kaldi data directories: wav.scp with optional segments, text, utt2spk or spk2utt, and utt2dur
(lengths of whole files).

A line of wav.scp may be a command that decodes a file: its path is taken, nothing is executed.
Kaldi has no labels and corpus names. An utterance without a speaker has itself as speaker. Words of
a text are separated by single spaces.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError, did_you_mean
from hubert_pretrain.formats.record import Header, ReadOptions, Record, header_of
from hubert_pretrain.formats.text import (
    length_tolerance,
    nonblank_lines,
    parse_number,
    safe_name,
    writing,
)
from hubert_pretrain.frames import samples, seconds

WAVES = "wav.scp"
SEGMENTS = "segments"
TEXT = "text"
SPEAKERS = "utt2spk"
UTTERANCES = "spk2utt"
DURATIONS = "utt2dur"

_TO_THE_END = "-1"
"""End of a segment that reaches to the end of its recording."""
_ARCHIVE = re.compile(r".*\.(ark|scp)(\.gz)?:\d+(\[.*\])?")


# -- reading


def read(folder: Path, options: ReadOptions) -> Iterator[Record]:
    """Every utterance of a data directory: the lines of segments, or of wav.scp without segments.

    Raises:
        DataError: a command that does more than decode, an archive, an id that is missing from one
            of the files, an id twice, or a segment that ends before it begins.
    """
    texts = _table(folder / TEXT, single_spaced=True)
    speakers = _speakers(folder)
    count = 0
    for place, utterance in _audio(folder, options):
        count += 1
        speaker = _value_of(speakers, utterance.id, place, folder / SPEAKERS)
        text = _value_of(texts, utterance.id, place, folder / TEXT)
        if speaker == utterance.id:
            speaker = ""
        yield place, replace(utterance, speaker=speaker, text=text)
    if not count:
        empty = SEGMENTS if (folder / SEGMENTS).is_file() else WAVES
        raise DataError(f"{folder}: its {empty} is empty; expected '<utterance> <path>' lines")
    if texts is not None and len(texts) > count:
        known = {utterance.id for _, utterance in _audio(folder, options)}
        other = next(id for id in texts if id not in known)
        raise DataError(
            f"{folder / TEXT}: has a text of {other!r}, which has no audio"
            f"{did_you_mean(other, sorted(known)[:1000])}; remove the line"
        )


def _audio(folder: Path, options: ReadOptions) -> Iterator[Record]:
    """Every utterance, without its text and speaker."""
    if (folder / SEGMENTS).is_file():
        return _segments(folder, options)
    return _whole_files(folder, options)


def _whole_files(folder: Path, options: ReadOptions) -> Iterator[Record]:
    durations = _table(folder / DURATIONS)
    for place, id, value in _pairs(folder / WAVES):
        path, channel = _file_of(value, place, options, folder)
        utterance = SourceUtterance(id=id, path=path, channel=channel, split=options.split)
        if durations is not None:
            duration = _value_of(durations, id, place, folder / DURATIONS)
            where = f"{folder / DURATIONS}: utterance {id!r}"
            utterance = replace(
                utterance,
                expected_samples=samples(parse_number(duration, where, "duration")),
                expected_within=length_tolerance(duration),
            )
        yield place, utterance


def _segments(folder: Path, options: ReadOptions) -> Iterator[Record]:
    # Recording -> the place where wav.scp names it, and its path or command.
    recordings: dict[str, tuple[str, str]] = {}
    for place, id, value in _pairs(folder / WAVES):
        if recordings.setdefault(id, (place, value)) != (place, value):
            raise DataError(
                f"{place} repeats recording {id!r} of {recordings[id][0]}; "
                "remove one of the two lines"
            )
    for place, id, value in _pairs(folder / SEGMENTS):
        fields = value.split()
        if len(fields) != 3:
            raise DataError(
                f"{place} has {1 + len(fields)} fields, expected "
                "'<utterance> <recording> <start> <end>' in seconds; fix the line"
            )
        recording, start, end = fields
        if recording not in recordings:
            raise DataError(
                f"{place}: recording {recording!r} is not in {folder / WAVES}; "
                "add it, or remove the line"
            )
        first, num_samples = _span(start, end, place)
        wave_place, wave = recordings[recording]
        path, channel = _file_of(wave, wave_place, options, folder)
        yield (
            place,
            SourceUtterance(
                id=id,
                path=path,
                channel=channel,
                split=options.split,
                start=first,
                num_samples=num_samples,
            ),
        )


def _span(start: str, end: str, place: str) -> tuple[int, int | None]:
    """(first sample, number of samples or None for all to the end) of a segment in seconds."""
    first = samples(parse_number(start, place, "start"))
    if _is_the_end(end):
        return first, None
    last = samples(parse_number(end, place, "end"))
    if last <= first:
        raise DataError(
            f"{place}: ends at {end} s, which is not after its start at {start} s; fix the line"
        )
    return first, last - first


def _is_the_end(end: str) -> bool:
    try:
        return float(end) == float(_TO_THE_END)
    except ValueError:
        return False


def _file_of(value: str, place: str, options: ReadOptions, folder: Path) -> tuple[str, int | None]:
    """(audio file, channel of it or None) of an entry of wav.scp."""
    value = value.strip()
    channel = None
    if value.endswith("|"):
        value, channel = decoded_by(value[:-1], place)
    if value == "-" or value.startswith("|") or _ARCHIVE.fullmatch(value):
        raise DataError(
            f"{place}: {value[:80]!r} is no audio file; expected a path: "
            "write the audio to files (wav-copy) and name those"
        )
    return options.locate(value, folder), channel


def _pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, key, value) of every line. Raises DataError for a key without a value, except in the
    file of texts.
    """
    for number, line in nonblank_lines(path):
        key, *rest = line.split(maxsplit=1)
        if not rest and path.name != TEXT:
            raise DataError(
                f"{path}: line {number} is {line.strip()!r} alone, "
                "expected a value after the name; fix the line"
            )
        yield f"{path}: line {number}", key, rest[0].strip() if rest else ""


def _table(path: Path, single_spaced: bool = False) -> dict[str, str] | None:
    """All values by key; None without the file. Raises DataError for a repeated key."""
    if not path.is_file():
        return None
    table: dict[str, str] = {}
    for place, key, value in _pairs(path):
        if key in table:
            raise DataError(f"{place} repeats {key!r}; remove one of the two lines")
        table[key] = " ".join(value.split()) if single_spaced else value
    return table


def _speakers(folder: Path) -> dict[str, str] | None:
    """Utterance -> speaker, from utt2spk or else spk2utt."""
    if (folder / SPEAKERS).is_file():
        return _table(folder / SPEAKERS)
    by_speaker = _table(folder / UTTERANCES)
    if by_speaker is None:
        return None
    return {id: speaker for speaker, ids in by_speaker.items() for id in ids.split()}


def _value_of(table: dict[str, str] | None, id: str, place: str, path: Path) -> str:
    if table is None:
        return ""
    if id not in table:
        raise DataError(
            f"{path}: has no line of utterance {id!r} ({place}); "
            "add it, remove the utterance, or remove the whole file"
        )
    return table[id]


# -- writing


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes a data directory per split, `<split>/`, each sorted by bytes as Kaldi expects.

    Raises DataError for ids and speakers with blanks, and for audio inside shards.
    """
    splits: dict[str, list[SourceUtterance]] = defaultdict(list)
    for utterance in utterances():
        _refuse_unwritable(utterance)
        splits[utterance.split].append(utterance)
    for split, members in splits.items():
        _write_folder(target / split, sorted(members, key=lambda member: member.id.encode()))


def _refuse_unwritable(utterance: SourceUtterance) -> None:
    for name, value in (("id", utterance.id), ("speaker", utterance.speaker)):
        if re.search(r"\s", value) or (name == "id" and not value):
            raise DataError(
                f"utterance {utterance.id!r}: its {name} {value!r} holds blanks, "
                "which separate fields in Kaldi; rename it"
            )
    if utterance.offset >= 0 or re.search(r"[\n\r]|\s$", str(utterance.path)):
        raise DataError(
            f"utterance {utterance.id!r}: {str(utterance.path)!r} is a shard, or its name has a "
            "line break or a blank at its end; use huggingface"
        )


def _write_folder(folder: Path, utterances: list[SourceUtterance]) -> None:
    headers = {str(utterance.path): header_of(utterance) for utterance in utterances}
    # Without segments, recordings are named like their utterances.
    all_whole = len(headers) == len(utterances) and all(
        headers[str(utterance.path)].is_whole(utterance) for utterance in utterances
    )
    recordings = {
        str(utterance.path): utterance.id if all_whole else safe_name(str(utterance.path))
        for utterance in utterances
    }
    _write_table(folder / WAVES, {id: command_for(path) for path, id in recordings.items()})
    (folder / SEGMENTS).unlink(missing_ok=True)
    if not all_whole:
        segments = {
            utterance.id: _segment(utterance, recordings, headers) for utterance in utterances
        }
        _write_table(folder / SEGMENTS, segments)

    durations: dict[str, str] = {}
    texts: dict[str, str] = {}
    speakers: dict[str, str] = {}
    by_speaker: dict[str, list[str]] = defaultdict(list)
    for utterance in utterances:
        length = headers[str(utterance.path)].length_of(utterance)
        speaker = utterance.speaker or utterance.id
        durations[utterance.id] = f"{seconds(length):.6f}"
        texts[utterance.id] = " ".join(utterance.text.split())
        speakers[utterance.id] = speaker
        by_speaker[speaker].append(utterance.id)
    _write_table(folder / DURATIONS, durations)
    if any(texts.values()):
        _write_table(folder / TEXT, texts)
    _write_table(folder / SPEAKERS, speakers)
    _write_table(
        folder / UTTERANCES, {speaker: " ".join(ids) for speaker, ids in by_speaker.items()}
    )


def _segment(
    utterance: SourceUtterance, recordings: dict[str, str], headers: dict[str, Header]
) -> str:
    """`<recording> <start> <end>` in seconds."""
    path = str(utterance.path)
    if headers[path].is_whole(utterance):
        return f"{recordings[path]} 0 {_TO_THE_END}"
    end = utterance.start + headers[path].length_of(utterance)
    return f"{recordings[path]} {seconds(utterance.start):.6f} {seconds(end):.6f}"


def _write_table(path: Path, table: dict[str, str]) -> None:
    with writing(path) as file:
        for key in sorted(table, key=str.encode):
            file.write(f"{key} {table[key]}\n".replace(" \n", "\n"))


# -- commands in wav.scp

_FLAC_LETTERS = re.compile("-[cds]+")
_FLAGS: dict[str, set[str]] = {
    "flac": {"--stdout", "--decode", "--silent"},
    "cat": set(),
    "sph2pipe": {"-p"},
    "sox": {"-", "-R", "-V0", "-V1", "-q"},
    "ffmpeg": {"-", "pipe:1", "-nostdin", "-y", "-vn", "-hide_banner"},
}
"""Program -> flags that change nothing that decoding to 16 kHz mono does not do anyway."""
_FLAGS_WITH_VALUE = {
    "sph2pipe": {"-f": "wav|rif", "-c": "1|2"},
    "sox": {
        "-t": "wav|flac|sph|mp3|ogg|opus",
        "-r": r"\d+k?",
        "-b": r"\d+",
        "-e": "[a-z-]+",
        "-c": "1",
        "rate": r"\d+k?",
        "remix": r"[1-9]\d*",
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
"""Program -> such flags with a value -> the values that are allowed."""
_CHANNEL_FLAGS = {("sph2pipe", "-c"), ("sox", "remix")}
"""(program, flag) whose value is the number of a channel, from 1 on."""
_QUOTED = re.compile(r"""'[^']*'|"[^"$`\\]*\"""")
_SHELL = re.compile(r"[;&|<>`$(){}\[\]*?~#!\\\n\"']")


def decoded_by(command: str, place: str) -> tuple[str, int | None]:
    """The audio file that `command` (without its last "|") decodes to its output, and the channel
    that it takes, from 0 on.

    >>> decoded_by("flac -c -d -s '/speech/a b.flac'", "wav.scp: line 1")
    ('/speech/a b.flac', None)
    >>> decoded_by("sph2pipe -f wav -p -c 2 a.sph", "wav.scp: line 1")
    ('a.sph', 1)

    Raises DataError for every command but flac, sox, sph2pipe, ffmpeg and cat that only decode one
    file.
    """
    has_shell_syntax = _SHELL.search(_QUOTED.sub("", command))
    words = [] if has_shell_syntax else shlex.split(command)
    paths = _paths(words)
    if paths is None or len(paths) != 1 or not paths[0]:
        raise DataError(
            f"{place}: is the command {command.strip()[:80]!r}, which would be code to execute; "
            "expected a path, or one of flac, sox, sph2pipe, ffmpeg and cat that only decodes a "
            "file: write the audio to files (wav-copy) and name those"
        )
    channels = [
        int(value) - 1
        for flag, value in pairwise(words)
        if (os.path.basename(words[0]), flag) in _CHANNEL_FLAGS
    ]
    return paths[0], channels[0] if channels else None


def _paths(words: list[str]) -> list[str] | None:
    """The words that are paths; None when there is an unknown flag."""
    program = os.path.basename(words[0]) if words else ""
    if program not in _FLAGS:
        return None
    values = _FLAGS_WITH_VALUE.get(program, {})
    paths = []
    rest = iter(words[1:])
    for word in rest:
        if program == "ffmpeg" and word == "-i":
            paths.append(next(rest, ""))
        elif word in values:
            if not re.fullmatch(values[word], next(rest, "")):
                return None
        elif word in _FLAGS[program] or (program == "flac" and _FLAC_LETTERS.fullmatch(word)):
            continue
        elif word.startswith("-") or program == "ffmpeg":
            return None
        else:
            paths.append(word)
    return paths


def command_for(path: str) -> str:
    """Entry of wav.scp for a file: the path of a WAV, which Kaldi reads itself, else the usual
    command that decodes it.
    """
    lower = path.lower()
    if lower.endswith(".wav"):
        return path
    if lower.endswith(".flac"):
        return f"flac -c -d -s {shlex.quote(path)} |"
    return f"ffmpeg -v error -i {shlex.quote(path)} -f wav -ac 1 - |"
