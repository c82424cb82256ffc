"""lhotse: cut sets (one MonoCut per line of a jsonl or jsonl.gz, with its recording inside),
recordings with their supervisions, and Shar folders (cuts beside tar files of their audio). lhotse
need not be installed.

The texts of several supervisions in a cut are joined in time order. An alignment named phone or
phones is read too; lhotse counts its times from the start of the recording. Split, label and corpus
are in `custom`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.audio import resampled_length
from hubert_pretrain.data.shards.tar import Member, Shard, open_shard
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.record import ReadOptions, Record, header_of, split_named
from hubert_pretrain.formats.table import json_object, parse_text
from hubert_pretrain.formats.text import (
    DECODER_TOLERANCE,
    nonblank_lines,
    parse_number,
    parse_whole_number,
    writing,
)
from hubert_pretrain.frames import SAMPLE_RATE, samples, seconds

_NAMES = (("recordings", "supervisions"), ("recording", "supervision"))
"""Words in the names of two files that belong together."""
_SHAR_CUTS = "cuts.*.jsonl*"
PHONE_TIERS = ("phone", "phones", "phoneme", "phonemes")
"""Names of an alignment of phones."""


# -- reading


def is_item(row: dict[str, Any]) -> bool:
    """True for a JSON object of lhotse: a cut, a recording or a supervision."""
    return (
        str(row.get("type", "")).endswith("Cut")
        or "sources" in row
        or ("recording_id" in row and "duration" in row)
    )


def is_shar(folder: Path) -> bool:
    """True for a folder in lhotse's Shar format."""
    return any(folder.glob(_SHAR_CUTS)) and any(folder.glob("recording.*.tar"))


def without_parts(paths: list[Path]) -> list[Path]:
    """Those of several files of lhotse in one folder that `read` takes: cut sets, or else
    recordings; supervisions are read with their recordings.
    """
    kinds = {path: _kind_of(_first_item(path)) for path in paths}
    cuts = [path for path in paths if kinds[path] not in ("recording", "supervision")]
    if cuts and len(cuts) < len(paths):
        others = ", ".join(path.name for path in paths if path not in cuts)
        warnings.warn(f"{paths[0].parent}: its cuts are read, not {others}", stacklevel=2)
    if cuts:
        return cuts
    recordings = [path for path in paths if kinds[path] == "recording"]
    return [
        path for path in paths if kinds[path] == "recording" or _partner(path) not in recordings
    ]


def read(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Every cut; or every supervision of recordings, which lie in a file beside it (`recordings`
    and `supervisions` in their names); or every recording, without supervisions.

    Raises DataError, with the line, for several channels, mixtures, and audio that is transformed
    (other than resampled), embedded or computed.
    """
    if path.is_dir():
        yield from _shar(path, options)
        return
    kind = _kind_of(_first_item(path))
    if kind == "recording" and (partner := _partner(path)) is not None:
        cuts = _joined(path, partner)
    elif kind == "supervision":
        recordings = _partner(path)
        if recordings is None:
            raise DataError(
                f"{path}: has supervisions, expected their recordings beside it in a file whose "
                "name has 'recordings' for 'supervisions'; put them there"
            )
        cuts = _joined(recordings, path)
    else:
        cuts = _items(path)
    for place, cut in cuts:
        yield place, _utterance(cut, place, options, path.parent)


def _items(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, item) of every line; recordings become cuts. Raises DataError for an empty file."""
    empty = True
    for number, line in nonblank_lines(path):
        empty = False
        place = f"{path}: line {number}"
        item = json_object(line, place)
        yield place, _cut_of(item) if "sources" in item else item
    if empty:
        raise DataError(f"{path}: is empty; expected a cut in each line")


def _first_item(path: Path) -> dict[str, Any]:
    number, line = next(nonblank_lines(path), (0, "{}"))
    return json_object(line, f"{path}: line {number}")


def _partner(path: Path) -> Path | None:
    """The supervisions of a file of recordings, or the recordings of a file of supervisions."""
    for names in _NAMES:
        for here, there in (names, names[::-1]):
            if here in path.name:
                other = path.with_name(path.name.replace(here, there))
                found = [other, other.with_suffix(""), other.with_name(f"{other.name}.gz")]
                return next((each for each in found if each.is_file()), None)
    return None


def _joined(recordings: Path, supervisions: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, cut) of every supervision. Memory holds the recordings."""
    by_id: dict[str, dict[str, Any]] = {}
    for place, cut in _items(recordings):
        with _fields_of(place):
            by_id[cut["recording"]["id"]] = cut["recording"]
    for place, supervision in _items(supervisions):
        with _fields_of(place):
            id = supervision["recording_id"]
        if id not in by_id:
            raise DataError(
                f"{place}: is of recording {id!r}, which is not in {recordings}; "
                "add it, or remove the line"
            )
        yield place, _cut_of(by_id[id], supervision)


def _cut_of(recording: dict[str, Any], supervision: dict[str, Any] | None = None) -> dict[str, Any]:
    """A cut of a whole recording, or of the part of it that a supervision is about."""
    if supervision is None:
        id = recording.get("id")
        return {"id": id, "start": 0, "duration": recording.get("duration"), "recording": recording}
    names = ("id", "start", "duration", "channel", "custom")
    facts = {name: supervision[name] for name in names if name in supervision}
    return facts | {"supervisions": [supervision], "recording": recording}


@contextmanager
def _fields_of(place: str) -> Iterator[None]:
    """Raises DataError when an item lacks a field."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{place}: is no MonoCut of lhotse ({type(error).__name__}: {error}); "
            "write the cuts again with to_jsonl"
        ) from error


def _shar(folder: Path, options: ReadOptions) -> Iterator[Record]:
    """Every cut of a Shar folder, with its audio in `recording.<number>.tar`, in the same order."""
    for cuts in sorted(folder.glob(_SHAR_CUTS)):
        tar = folder / f"recording.{cuts.name.split('.')[1]}.tar"
        shard = Shard(str(tar))
        with open_shard(str(tar)) as file:
            members = (one for one in shard.members(file) if not one.extension.endswith("json"))
            for item, member in zip_longest(_items(cuts), members):
                if item is None or member is None:
                    raise DataError(
                        f"{tar}: has more or fewer recordings than {cuts} has cuts; "
                        "write both again"
                    )
                place, cut = item
                yield place, _in_shar(cut, member, tar, place, options)


def _in_shar(
    cut: dict[str, Any], member: Member, tar: Path, place: str, options: ReadOptions
) -> SourceUtterance:
    name, _, extension = f"{member.key}.{member.extension}".rpartition(".")
    recording = dict(cut.get("recording") or {})
    channels = [cut.get("channel", 0)]
    recording["sources"] = [{"type": "file", "channels": channels, "source": str(tar)}]
    utterance = _utterance(cut | {"recording": recording}, place, options, tar.parent)
    if name != utterance.id:
        raise DataError(
            f"{place}: is cut {utterance.id!r}, {tar} has {name!r} in its place; write both again"
        )
    return replace(
        utterance,
        offset=member.offset,
        num_bytes=len(member.data),
        fault="its audio was left out of the Shar folder" if extension == "nodata" else "",
    )


def _utterance(
    cut: dict[str, Any], place: str, options: ReadOptions, home: Path
) -> SourceUtterance:
    with _fields_of(place):
        return _utterance_of(cut, place, options, home)


def _utterance_of(
    cut: dict[str, Any], place: str, options: ReadOptions, home: Path
) -> SourceUtterance:
    _refuse_unreadable(cut, place)
    recording = cut["recording"]
    supervisions = sorted(cut.get("supervisions") or [], key=lambda each: each["start"])
    texts = [parse_text(each.get("text"), place, "text") for each in supervisions]
    speakers = {parse_text(each.get("speaker"), place, "speaker") for each in supervisions}
    custom = cut.get("custom") or {}
    split = parse_text(custom.get("split"), place, "custom.split")

    # Lengths at 16 kHz. Seconds are rounded at the recording's rate, so the last sample of the cut
    # may lie one behind the recording.
    rate = parse_whole_number(recording["sampling_rate"], place, "recording.sampling_rate")
    if rate == 0:
        raise DataError(f"{place}: recording.sampling_rate is 0; fix the line")
    length = resampled_length(
        parse_whole_number(recording["num_samples"], place, "recording.num_samples"), rate
    )
    start = samples(parse_number(cut["start"], place, "start"))
    duration = samples(parse_number(cut["duration"], place, "duration"))
    num_samples = min(duration, length - start)
    if num_samples <= 0:
        raise DataError(
            f"{place}: begins at {cut['start']} s of a recording of {seconds(length):g} s; "
            "fix the line"
        )
    is_whole = start == 0 and length - num_samples <= 1
    path, channel = _source(cut, place)

    return SourceUtterance(
        id=parse_text(cut["id"], place, "id"),
        path=options.locate(path, home),
        channel=channel,
        start=start,
        num_samples=None if is_whole else num_samples,
        expected_samples=length if is_whole else None,
        expected_within=DECODER_TOLERANCE if is_whole else 1,
        split=split_named(split) if split else options.split,
        speaker=speakers.pop() if len(speakers) == 1 else "",
        text=" ".join(text for text in texts if text),
        label=parse_text(custom.get("label"), place, "custom.label"),
        corpus=parse_text(custom.get("corpus"), place, "custom.corpus"),
        phones=_phones(supervisions, place, start),
    )


def _refuse_unreadable(cut: dict[str, Any], place: str) -> None:
    kind = _kind_of(cut)
    if kind != "MonoCut":
        raise DataError(
            f"{place}: is a {kind}, expected a MonoCut with its recording inside; "
            "make cuts of it in lhotse and write them to_jsonl"
        )
    if not all(map(_keeps_sound, cut["recording"].get("transforms") or [])):
        raise DataError(
            f"{place}: its recording is changed while it is read (transforms other than Resample "
            f"to at least {SAMPLE_RATE} Hz); save the changed audio first"
        )


def _keeps_sound(transform: dict[str, Any]) -> bool:
    """True for a change of the rate that leaves all that 16 kHz can hold."""
    values = transform.get("kwargs", {})
    rate = values.get("target_sampling_rate", values.get("sampling_rate", 0))
    return transform.get("name") == "Resample" and rate >= SAMPLE_RATE


def _kind_of(item: dict[str, Any]) -> str:
    if "sources" in item:
        return "recording"
    if "recording" in item:
        return str(item.get("type", "MonoCut"))
    if "recording_id" in item and "type" not in item and "supervisions" not in item:
        return "supervision"
    return "cut without its recording" if "duration" in item else "JSON object"


def _source(cut: dict[str, Any], place: str) -> tuple[str, int | None]:
    """The audio file of a cut, and the channel of it where it has several."""
    sources = cut["recording"]["sources"]
    number: Any = cut.get("channel")
    if isinstance(number, list) and len(number) == 1:
        number = number[0]
    if number is None and len(sources) == 1:
        channels = [0]
        source = sources[0]
    else:
        named = [each for each in sources if number in each.get("channels", [0])]
        if not named:
            raise DataError(
                f"{place}: is about channel {number}, expected one of its recording; "
                "name one, or write it to a file of its own"
            )
        source = named[0]
        channels = source.get("channels", [0])
    channel = channels.index(number) if len(channels) > 1 else None
    if source["type"] == "command":
        raise DataError(
            f"{place}: its audio is the command {str(source['source'])[:60]!r}, "
            "which would be code to execute; write it to a file"
        )
    if source["type"] not in ("file", "url"):
        raise DataError(
            f"{place}: its audio is of type {source['type']!r}, expected file or url; "
            "save the audio first"
        )
    return parse_text(source["source"], place, "recording.sources"), channel


def _phones(supervisions: list[dict[str, Any]], place: str, start: int) -> Phones | None:
    """The phones of all supervisions, in samples from the cut's `start`; None without phones."""
    found: list[tuple[str, int, int]] = []
    for supervision in supervisions:
        tiers = supervision.get("alignment") or {}
        tier = next((name for name in PHONE_TIERS if name in tiers), "")
        for item in tiers.get(tier, []):
            phone = parse_text(item[0], place, "alignment")
            begin = parse_number(item[1], place, "alignment")
            end = begin + parse_number(item[2], place, "alignment")
            found.append((phone, samples(begin) - start, samples(end) - start))
    return [phone for phone in sorted(found, key=lambda phone: phone[1:]) if phone[0]] or None


# -- writing


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes one cut set: jsonl, or jsonl.gz, by the name. Raises DataError for audio inside
    shards.
    """
    with writing(target) as file:
        for utterance in utterances():
            file.write(json.dumps(_cut(utterance), ensure_ascii=False) + "\n")


def _cut(utterance: SourceUtterance) -> dict[str, Any]:
    if utterance.offset >= 0:
        raise DataError(
            f"utterance {utterance.id!r}: lies inside the shard {utterance.path}, "
            "which a cut cannot say; write --to huggingface instead"
        )
    header = header_of(utterance)
    path = str(utterance.path)
    # A whole file has the length that its own rate gives; a segment, that of 16 kHz.
    recording_seconds = header.num_samples / header.rate
    duration = seconds(header.length_of(utterance))
    if header.is_whole(utterance):
        duration = recording_seconds
    recording = {
        "id": path,
        "sources": [{"type": "url" if "://" in path else "file", "channels": [0], "source": path}],
        "sampling_rate": header.rate,
        "num_samples": header.num_samples,
        "duration": recording_seconds,
        "channel_ids": [0],
    }
    supervision: dict[str, Any] = {
        "id": utterance.id,
        "recording_id": path,
        "start": 0.0,
        "duration": duration,
        "channel": 0,
        "text": utterance.text,
    }
    if utterance.speaker:
        supervision["speaker"] = utterance.speaker
    if utterance.phones:
        items = [_alignment_item(phone, utterance.start) for phone in utterance.phones]
        supervision["alignment"] = {"phone": items}
    custom = {"split": utterance.split, "label": utterance.label, "corpus": utterance.corpus}
    return {
        "id": utterance.id,
        "start": seconds(utterance.start),
        "duration": duration,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "custom": {name: value for name, value in custom.items() if value},
        "type": "MonoCut",
    }


def _alignment_item(phone: tuple[str, int, int], start: int) -> list[Any]:
    """[phone, start, duration, score] in seconds of the recording."""
    name, begin, end = phone
    return [name, seconds(start + begin), seconds(end - begin), None]
