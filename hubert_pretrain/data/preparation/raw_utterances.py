"""All utterances of a corpus source as columns on disk, with a few numbers per utterance in
memory.

N utterances. A position is the number of an utterance in the order in which the source gave it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.arrow_table import CHUNK, TEXT, ColumnSpool, chunks
from hubert_pretrain.data.audio import MIX
from hubert_pretrain.data.manifest import TYPES, order_by_id
from hubert_pretrain.data.preparation.audio_stats import Segment
from hubert_pretrain.data.preparation.quarantine import Quarantine, Quarantined
from hubert_pretrain.data.source import CorpusSource, SourceUtterance, corpus_name
from hubert_pretrain.data.storage import Location, is_url
from hubert_pretrain.errors import DataError
from hubert_pretrain.progress import progress

Ints = NDArray[np.int64]

PASSTHROUGH = ("id", "path", "offset", "num_bytes", "start", "speaker", "text", "label", "corpus")
"""Columns of the manifest that are taken from the source unchanged."""
COLUMNS: dict[str, pa.DataType] = {
    name: TYPES[name] for name in (*PASSTHROUGH, "split", "num_samples")
} | {
    "original": TEXT,
    "channel": pa.int16(),
    "expected_samples": pa.int64(),
    "expected_within": pa.int32(),
    "aligned": pa.int8(),
    "phones": pa.large_list(pa.int32()),
    "starts": pa.large_list(pa.int64()),
    "ends": pa.large_list(pa.int64()),
}
_UNCHANGED = (
    "id",
    "offset",
    "num_bytes",
    "start",
    "speaker",
    "text",
    "label",
    "split",
    "original",
    "expected_within",
)
"""Columns that hold the field of `SourceUtterance` as it is."""


class _Placed(NamedTuple):
    """An utterance as a segment of an audio file."""

    position: int
    location: Location
    start: int
    num_samples: int
    channel: int


class RawUtterances:
    """The utterances of a source, by position."""

    def __init__(self, columns: Mapping[str, pa.Array], phones: list[str]) -> None:
        """Raises DataError when two utterances have the same id."""
        self.columns = columns
        self.phone_names = phones
        self.by_id = order_by_id(columns["id"], columns["path"])
        """(N,) positions in order of ids."""

    def __len__(self) -> int:
        return len(self.by_id)

    def take(self, name: str, positions: Ints) -> pa.Array:
        """The values of a column at some positions."""
        return self.columns[name].take(pa.array(positions))

    def recordings(self) -> Iterator[tuple[Location, list[int], list[Segment]]]:
        """Every audio file once, ordered by path: its location, the positions of the utterances
        that are segments of it, and the segments.
        """
        keys = ("path", "offset", "start", "id")
        table = pa.table({name: self.columns[name] for name in keys})
        order: Ints = (
            pc.sort_indices(table, sort_keys=[(name, "ascending") for name in keys])
            .to_numpy()
            .view(np.int64)
        )
        for location, group in groupby(self._placed(order), key=lambda one: one.location):
            members = list(group)
            segments = [
                Segment(one.start, one.num_samples if one.num_samples >= 0 else None, one.channel)
                for one in members
            ]
            yield location, [one.position for one in members], segments

    def _placed(self, order: Ints) -> Iterator[_Placed]:
        names = ("path", "offset", "num_bytes", "start", "num_samples", "channel")
        for part in chunks(len(order)):
            columns = (self.take(name, order[part]).to_pylist() for name in names)
            for position, path, offset, num_bytes, *segment in zip(
                order[part].tolist(), *columns, strict=True
            ):
                yield _Placed(position, Location(path, offset, num_bytes), *segment)

    def phones(self, position: int) -> Phones:
        """The alignment of an utterance; empty when it has none."""
        numbers, starts, ends = (
            self.columns[name][position].as_py() for name in ("phones", "starts", "ends")
        )
        return [
            (self.phone_names[number], start, end)
            for number, start, end in zip(numbers, starts, ends, strict=True)
        ]

    def phone_ends(self, positions: Ints) -> Ints:
        """The sample at which each utterance's alignment ends; 0 where there is none."""
        column = self.columns["ends"]
        bounds = np.frombuffer(column.buffers()[1], dtype=np.int64)
        counts = bounds[positions + 1] - bounds[positions]
        lasts = bounds[positions + 1] - 1
        ends = np.zeros(len(positions), dtype=np.int64)
        aligned = counts > 0
        if aligned.any():
            ends[aligned] = column.values.to_numpy()[lasts[aligned]]
        return ends


def collect(
    source: CorpusSource,
    folder: Path,
    spool: ColumnSpool,
    quarantine: Quarantine,
    channel: int = MIX,
) -> RawUtterances:
    """All utterances of a source.

    Args:
        source: lists them, in any order.
        folder: where the source may write audio of its own.
        spool: has the columns `COLUMNS`; it stores the utterances as long as they are used.
        quarantine: takes those whose source knows a fault, and those with a name that is not UTF-8.
        channel: of the utterances that name none.

    Raises:
        DataError: there are no utterances, or two have the same id.
    """
    inventory: dict[str, int] = {}
    utterances = _listed(source.utterances(folder))
    while chunk := list(islice(utterances, CHUNK)):
        if faults := [one for one in map(_fault_of, chunk) if one is not None]:
            for one in faults:
                quarantine.add(one)
            chunk = [utterance for utterance in chunk if _fault_of(utterance) is None]
        spool.append(_columns(chunk, corpus_name(source), channel, inventory))
    if not spool.num_rows:
        if len(quarantine):
            quarantine.refuse_too_many(len(quarantine), 0.0)
        where = getattr(source, "root", None) or corpus_name(source)
        raise DataError(
            f"{where}: no utterances found, expected at least one; "
            "check data.root and the names of the subsets"
        )
    return RawUtterances(spool.columns(), list(inventory))


def _listed(utterances: Iterable[SourceUtterance]) -> Iterator[SourceUtterance]:
    """The utterances, with a report of progress: a list of millions takes minutes."""
    with progress(None, "listing utterances") as advance:
        for utterance in utterances:
            yield utterance
            advance()


def _fault_of(utterance: SourceUtterance) -> Quarantined | None:
    """The entry of the quarantine for an utterance with a fault that is seen without its audio."""
    reason = utterance.fault
    if not reason and not _is_utf8(utterance):
        reason = "a name or text that is not UTF-8; rename the file (convmv -f latin1 -t utf8)"
        if sys.getfilesystemencoding() != "utf-8":
            reason = "a name that is not ASCII; set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
    return Quarantined(utterance.id, str(utterance.path), reason) if reason else None


def _is_utf8(utterance: SourceUtterance) -> bool:
    texts = (
        utterance.id,
        str(utterance.path),
        utterance.speaker,
        utterance.text,
        utterance.label,
        utterance.split,
        utterance.corpus,
    )
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _columns(
    utterances: Sequence[SourceUtterance], corpus: str, channel: int, inventory: dict[str, int]
) -> dict[str, list[Any]]:
    """Utterances as `COLUMNS`; phones are numbered by `inventory`, which grows."""
    columns: dict[str, list[Any]] = {
        name: [getattr(utterance, name) for utterance in utterances] for name in _UNCHANGED
    }
    columns["path"] = [_absolute(str(utterance.path)) for utterance in utterances]
    columns["corpus"] = [utterance.corpus or corpus for utterance in utterances]
    columns["channel"] = [
        channel if utterance.channel is None else utterance.channel for utterance in utterances
    ]
    for name in ("num_samples", "expected_samples"):
        lengths = [getattr(utterance, name) for utterance in utterances]
        columns[name] = [-1 if length is None else length for length in lengths]

    alignments = [utterance.phones or () for utterance in utterances]
    columns["aligned"] = [int(utterance.phones is not None) for utterance in utterances]
    columns["phones"] = [
        [inventory.setdefault(phone, len(inventory)) for phone, _, _ in alignment]
        for alignment in alignments
    ]
    columns["starts"] = [[start for _, start, _ in alignment] for alignment in alignments]
    columns["ends"] = [[end for _, _, end in alignment] for alignment in alignments]
    return columns


def _absolute(path: str) -> str:
    return path if is_url(path) else str(Path(path).absolute())
