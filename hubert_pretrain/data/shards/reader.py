"""Plain sequential reading of WebDataset shards: no manifest, no random access, no resuming.

Training does not use it: `prepare` with `data=webdataset` records once where every utterance lies,
and training reads from there in any order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hubert_pretrain.data import audio
from hubert_pretrain.data.audio import Waveform
from hubert_pretrain.data.audio_files import EVERY_SUFFIX, USUAL
from hubert_pretrain.data.shards.tar import Member, Shard, open_shard
from hubert_pretrain.data.storage import ByteRange
from hubert_pretrain.errors import DataError

AUDIO = tuple(suffix[1:] for suffix in EVERY_SUFFIX)
"""Extensions of members that count as audio."""
READ = (*AUDIO, "txt", "json", "cls")
"""Extensions of members that are read."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The members of a shard that have one key."""

    key: str
    shard: str
    members: dict[str, bytes]
    """Extension -> content, undecoded."""

    @property
    def waveform(self) -> Waveform:
        """(S,) float32, mono, 16 kHz. Raises DataError when there is no audio or it cannot be
        decoded.
        """
        member = audio_of(self.shard, self.key, list(self.members))
        return audio.decode(
            f"{self.shard}: {self.key}.{member}", ByteRange.of(self.members[member])
        )

    @property
    def text(self) -> str:
        """The transcript: the `txt` member, or `text` of the `json` member, or ""."""
        return text_of(f"{self.shard}: {self.key}", self.members)

    @property
    def json(self) -> dict[str, Any]:
        """The `json` member, {} without one. Raises DataError when it is no JSON object."""
        return fields_of(f"{self.shard}: {self.key}", self.members)


def stream(shards: Sequence[str], part: int = 0, parts: int = 1) -> Iterator[Sample]:
    """The samples of tar shards on disk or behind URLs, in the order in which they lie there.

    Args:
        shards: paths and URLs, see `expand` in index.py.
        part, parts: give only the `part`-th of `parts` disjoint shares, for the processes of a
            loader. Shares are whole shards or, when there are fewer shards than `parts`, every
            `parts`-th sample.

    Raises:
        DataError: a shard is missing, damaged or unsafe; the samples before the fault have been
            given.
    """
    by_shard = len(shards) >= parts
    number = 0
    for shard in shards[part::parts] if by_shard else shards:
        with open_shard(shard) as file:
            for members in Shard(shard).samples(file):
                if by_shard or number % parts == part:
                    yield Sample(members[0].key, shard, contents(members))
                number += 1


def audio_of(shard: str, key: str, extensions: Sequence[str]) -> str:
    """The extension of a sample's audio member, such as `flac` or `audio.flac`. Raises DataError
    when there is none or more than one.
    """
    found = [extension for extension in extensions if extension.rpartition(".")[2] in AUDIO]
    if len(found) != 1:
        raise DataError(
            f"{shard}: {key} has {', '.join(extensions)}; "
            f"expected one member of {USUAL}, ..., make the shard again"
        )
    return found[0]


def fields_of(where: str, members: dict[str, bytes]) -> dict[str, Any]:
    """The `json` member as a dict, {} without one. Raises DataError when it is no JSON object; the
    message calls the sample `where`.
    """
    try:
        fields = json.loads(members.get("json", b"{}"))
    except ValueError as error:
        raise DataError(f"{where}.json: is no JSON ({error}); make the shard again") from error
    if not isinstance(fields, dict):
        raise DataError(
            f"{where}.json: is a {type(fields).__name__}, "
            "expected an object with fields such as text; make the shard again"
        )
    return fields


def text_of(where: str, members: dict[str, bytes], field: str = "text") -> str:
    """The transcript of a sample: its `txt` member, else a field of the `json` member, or "".
    Raises DataError when it is not UTF-8.
    """
    return _member_text(where, members, "txt") or str(fields_of(where, members).get(field) or "")


def label_of(where: str, members: dict[str, bytes], field: str = "label") -> str:
    """The class of a sample: its `cls` member, else a field of the `json` member, or ""."""
    value = fields_of(where, members).get(field)
    return _member_text(where, members, "cls") or str("" if value is None else value)


def _member_text(where: str, members: dict[str, bytes], extension: str) -> str:
    """A text member in one line, "" without it."""
    try:
        return " ".join(members.get(extension, b"").decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}.{extension}: not UTF-8 text ({error.reason} at byte {error.start}); "
            "make the shard again"
        ) from error


def contents(members: Sequence[Member]) -> dict[str, bytes]:
    """Extension -> content."""
    return {member.extension: member.data for member in members}
