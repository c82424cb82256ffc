"""Cut sets of lhotse: a MonoCut in each line of a jsonl or jsonl.gz, its recording inside. lhotse
need not be installed.

Of several supervisions in a cut the texts are joined in time order. An alignment named phone or
phones comes along; lhotse counts its times from the start of the recording. Split, label and corpus
stand in `custom`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.audio import resampled_length
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.record import Reading, Record, header_of, split_named
from hubert_pretrain.formats.table import json_object, text_of
from hubert_pretrain.formats.text import (
    filled_lines,
    number_of,
    seconds_to_samples,
    whole_number_of,
    writing,
)
from hubert_pretrain.frames import SAMPLE_RATE

PHONE_TIERS = ("phone", "phones", "phoneme", "phonemes")


def is_cut(row: dict[str, Any]) -> bool:
    """Whether a JSON object is a cut, or another item of lhotse, for which reading has a message of
    its own.
    """
    return (
        str(row.get("type", "")).endswith("Cut")
        or "sources" in row
        or ("recording_id" in row and "duration" in row)
    )


def read(path: Path, reading: Reading) -> Iterator[Record]:
    """Every cut. Raises DataError, naming the line, for other channels than 0, mixtures, and
    changed, embedded or computed audio.
    """
    empty = True
    for number, line in filled_lines(path):
        empty = False
        place = f"{path}: line {number}"
        try:
            yield place, _utterance(json_object(line, place), place, reading, path.parent)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"{place}: is no MonoCut of lhotse ({type(error).__name__}: {error}); write the cuts again with to_jsonl"
            ) from error
    if empty:
        raise DataError(f"{path}: is empty; expected a cut in each line")


def _utterance(cut: dict[str, Any], place: str, reading: Reading, home: Path) -> SourceUtterance:
    _refuse_other(cut, place)
    recording = cut["recording"]
    supervisions = sorted(cut.get("supervisions") or [], key=lambda one: one["start"])
    rate = whole_number_of(recording["sampling_rate"], place, "recording.sampling_rate")
    if rate == 0:
        raise DataError(f"{place}: recording.sampling_rate is 0; mend the line")
    length = resampled_length(
        whole_number_of(recording["num_samples"], place, "recording.num_samples"), rate
    )
    start = seconds_to_samples(number_of(cut["start"], place, "start"))
    # Seconds are rounded at the recording's rate, so the last sample may lie one beyond.
    num_samples = min(
        seconds_to_samples(number_of(cut["duration"], place, "duration")), length - start
    )
    if num_samples <= 0:
        raise DataError(
            f"{place}: begins at {cut['start']} s of a recording of {length / SAMPLE_RATE:g} s; mend the line"
        )
    whole = start == 0 and length - num_samples <= 1
    custom = cut.get("custom") or {}
    speakers = {text_of(one.get("speaker"), place, "speaker") for one in supervisions}
    split = text_of(custom.get("split"), place, "custom.split")
    return SourceUtterance(
        id=text_of(cut["id"], place, "id"),
        path=reading.locate(_source(recording, place), home),
        **(
            {"expected_samples": length, "expected_within": SAMPLE_RATE // 40}
            if whole
            else {"start": start, "num_samples": num_samples}
        ),
        split=split_named(split) if split else reading.split,
        speaker=speakers.pop() if len(speakers) == 1 else "",
        text=" ".join(
            filter(None, (text_of(one.get("text"), place, "text") for one in supervisions))
        ),
        label=text_of(custom.get("label"), place, "custom.label"),
        corpus=text_of(custom.get("corpus"), place, "custom.corpus"),
        phones=_phones(supervisions, place, start),
    )


def _refuse_other(cut: dict[str, Any], place: str) -> None:
    kind = cut.get("type", "MonoCut")
    if "sources" in cut or "recording" not in cut:
        kind = (
            "recording"
            if "sources" in cut
            else "cut without its recording"
            if "duration" in cut
            else "JSON object"
        )
    if kind != "MonoCut":
        raise DataError(
            f"{place}: is a {kind}, expected a MonoCut with its recording inside; make cuts of it in lhotse and write them to_jsonl"
        )
    channel = cut.get("channel", 0)
    if channel not in (0, [0]):
        raise DataError(
            f"{place}: is about channel {channel}, only channel 0 is read here; write that channel to a file of its own"
        )
    if cut["recording"].get("transforms"):
        raise DataError(
            f"{place}: its recording is changed while it is read (transforms); save the changed audio first"
        )


def _source(recording: dict[str, Any], place: str) -> str:
    sources = recording["sources"]
    source = sources[0]
    if len(sources) > 1 or len(source.get("channels", [0])) > 1:
        raise DataError(
            f"{place}: its recording has {len(sources)} sources or several channels, only one of one is read; write mono files"
        )
    if source["type"] == "command":
        raise DataError(
            f"{place}: its audio is the command {str(source['source'])[:60]!r}, which would be code to execute; write it to a file"
        )
    if source["type"] not in ("file", "url"):
        raise DataError(
            f"{place}: its audio is of type {source['type']!r}, expected file or url; save the audio first"
        )
    return text_of(source["source"], place, "recording.sources")


def _phones(supervisions: list[dict[str, Any]], place: str, start: int) -> Phones | None:
    found: list[tuple[str, int, int]] = []
    for one in supervisions:
        tiers = one.get("alignment") or {}
        for item in tiers.get(next((name for name in PHONE_TIERS if name in tiers), ""), []):
            begin = number_of(item[1], place, "alignment")
            end = begin + number_of(item[2], place, "alignment")
            found.append(
                (
                    text_of(item[0], place, "alignment"),
                    seconds_to_samples(begin) - start,
                    seconds_to_samples(end) - start,
                )
            )
    return [phone for phone in sorted(found, key=lambda phone: phone[1:]) if phone[0]] or None


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes one cut set, jsonl or jsonl.gz as the name says. Raises DataError for audio inside
    shards.
    """
    with writing(target) as file:
        for utterance in utterances():
            file.write(json.dumps(_cut(utterance), ensure_ascii=False) + "\n")


def _cut(utterance: SourceUtterance) -> dict[str, Any]:
    if utterance.offset >= 0:
        raise DataError(
            f"utterance {utterance.id!r}: lies inside the shard {utterance.path}, which a cut cannot say; write --to huggingface instead"
        )
    header = header_of(utterance)
    path = str(utterance.path)
    start = utterance.start / SAMPLE_RATE
    length = header.length_of(utterance) / SAMPLE_RATE
    duration = header.num_samples / header.rate if header.is_whole(utterance) else length
    recording = {
        "id": path,
        "sources": [{"type": "url" if "://" in path else "file", "channels": [0], "source": path}],
        "sampling_rate": header.rate,
        "num_samples": header.num_samples,
        "duration": header.num_samples / header.rate,
        "channel_ids": [0],
    }
    supervision = {
        "id": utterance.id,
        "recording_id": path,
        "start": 0.0,
        "duration": duration,
        "channel": 0,
        "text": utterance.text,
    }
    supervision |= {"speaker": utterance.speaker} if utterance.speaker else {}
    if utterance.phones:
        supervision["alignment"] = {
            "phone": [_item(phone, utterance.start) for phone in utterance.phones]
        }
    custom = {
        name: value for name in ("split", "label", "corpus") if (value := getattr(utterance, name))
    }
    cut = {
        "id": utterance.id,
        "start": start,
        "duration": duration,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
    }
    return cut | {"custom": custom, "type": "MonoCut"}


def _item(phone: tuple[str, int, int], start: int) -> list[Any]:
    name, begin, end = phone
    return [name, (start + begin) / SAMPLE_RATE, (end - begin) / SAMPLE_RATE, None]
