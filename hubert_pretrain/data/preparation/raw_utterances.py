"""All that a corpus claims, as columns on disk: in memory there are only a few numbers per
utterance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.arrow_table import CHUNK, ColumnSpool, chunks
from hubert_pretrain.data.manifest import TYPES, order_by_id
from hubert_pretrain.data.preparation.audio_stats import Segment
from hubert_pretrain.data.source import CorpusSource, SourceUtterance, corpus_name
from hubert_pretrain.data.storage import Location, is_url
from hubert_pretrain.errors import DataError

Ints = NDArray[np.int64]

PASSTHROUGH = ("id", "path", "offset", "num_bytes", "start", "speaker", "text", "label", "corpus")
"""Columns of the manifest that come from the corpus as they are."""
COLUMNS: dict[str, pa.DataType] = {
    name: TYPES[name] for name in (*PASSTHROUGH, "split", "num_samples")
} | {
    "expected_samples": pa.int64(),
    "expected_within": pa.int32(),
    "aligned": pa.int8(),
    "phones": pa.large_list(pa.int32()),
    "starts": pa.large_list(pa.int64()),
    "ends": pa.large_list(pa.int64()),
}


class RawUtterances:
    """The claims of a corpus, each at a place that says nothing but in which order they came."""

    def __init__(self, columns: Mapping[str, pa.Array], phones: list[str]) -> None:
        """Raises DataError when two share an id."""
        self.columns = columns
        self._phones = phones
        self.by_id = order_by_id(columns["id"], columns["path"])
        """(N,) places in order of ids."""

    def __len__(self) -> int:
        return len(self.by_id)

    def take(self, name: str, places: Ints) -> pa.Array:
        """A column at some places."""
        return self.columns[name].take(pa.array(places))

    def recordings(self) -> Iterator[tuple[Location, list[int], list[Segment]]]:
        """Every audio file once, ordered by path: where it is, the places that are segments of it,
        and these.
        """
        keys = ("path", "offset", "start", "id")
        table = pa.table({name: self.columns[name] for name in keys})
        order: Ints = (
            pc.sort_indices(table, sort_keys=[(name, "ascending") for name in keys])
            .to_numpy()
            .view(np.int64)
        )
        for (path, offset, num_bytes), group in groupby(
            self._segments(order), key=lambda one: one[1:4]
        ):
            members = list(group)
            segments = [
                (start, num_samples if num_samples >= 0 else None)
                for *_, start, num_samples in members
            ]
            yield Location(path, offset, num_bytes), [one[0] for one in members], segments

    def _segments(self, order: Ints) -> Iterator[tuple[Any, ...]]:
        for part in chunks(len(order)):
            names = ("path", "offset", "num_bytes", "start", "num_samples")
            yield from zip(
                order[part].tolist(),
                *(self.take(name, order[part]).to_pylist() for name in names),
                strict=True,
            )

    def phones(self, place: int) -> Phones:
        """The alignment of a claim; empty when it has none."""
        numbers, starts, ends = (
            self.columns[name][place].as_py() for name in ("phones", "starts", "ends")
        )
        return [
            (self._phones[number], start, end)
            for number, start, end in zip(numbers, starts, ends, strict=True)
        ]

    def phone_ends(self, places: Ints) -> Ints:
        """The sample at which each claim's alignment ends; 0 where there is none."""
        column = self.columns["ends"]
        bounds = np.frombuffer(column.buffers()[1], dtype=np.int64)
        counts = bounds[places + 1] - bounds[places]
        lasts = bounds[places + 1] - 1
        ends = np.zeros(len(places), dtype=np.int64)
        ends[counts > 0] = column.values.to_numpy()[lasts[counts > 0]] if (counts > 0).any() else 0
        return ends


def collect(source: CorpusSource, folder: Path, spool: ColumnSpool) -> RawUtterances:
    """All claims of a corpus.

    Args:
        source: lists them, in any order.
        folder: where it may write audio of its own.
        spool: of `COLUMNS`; it holds the claims as long as they are used.

    Raises:
        DataError: there are none, or two share an id.
    """
    inventory: dict[str, int] = {}
    claims = iter(source.utterances(folder))
    while chunk := list(islice(claims, CHUNK)):
        try:
            spool.append(_columns(chunk, corpus_name(source), inventory))
        except UnicodeEncodeError as error:
            raise DataError(
                f"{error.object!r}: a name or text that is not UTF-8; rename the file, or save its list as UTF-8"
            ) from error
    if not spool.num_rows:
        where = getattr(source, "root", None) or corpus_name(source)
        raise DataError(
            f"{where}: no utterances found, expected at least one; check data.root and the names of the subsets"
        )
    return RawUtterances(spool.columns(), list(inventory))


def _columns(
    claims: Sequence[SourceUtterance], corpus: str, inventory: dict[str, int]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        name: [getattr(claim, name) for claim in claims]
        for name in (
            "id",
            "offset",
            "num_bytes",
            "start",
            "speaker",
            "text",
            "label",
            "split",
            "expected_within",
        )
    }
    phones = [claim.phones or () for claim in claims]
    return columns | {
        "path": [_whole(str(claim.path)) for claim in claims],
        "corpus": [claim.corpus or corpus for claim in claims],
        "num_samples": [-1 if claim.num_samples is None else claim.num_samples for claim in claims],
        "expected_samples": [
            -1 if claim.expected_samples is None else claim.expected_samples for claim in claims
        ],
        "aligned": [int(claim.phones is not None) for claim in claims],
        "phones": [
            [inventory.setdefault(phone, len(inventory)) for phone, _, _ in one] for one in phones
        ],
        "starts": [[start for _, start, _ in one] for one in phones],
        "ends": [[end for _, _, end in one] for one in phones],
    }


def _whole(path: str) -> str:
    return path if is_url(path) else str(Path(path).absolute())
