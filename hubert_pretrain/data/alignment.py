"""Phone alignments of manifest rows: the phone at each sample.

Stored beside the manifest as one memory-mapped table with the columns row, phone numbers, starts
and ends; the names of the phones are in its metadata. T frames, P phones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hubert_pretrain.data.arrow_table import CHUNK, ColumnSpool, open_table, write_table
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.frames import MODEL_GRID, FrameGrid

FORMAT = "hubert_pretrain.alignments.1"
NO_PHONE = -1

Phones = Sequence[tuple[str, int, int]]
"""An alignment: (phone, start, end) in samples at 16 kHz, ordered, end exclusive, without
overlaps.
"""


class Alignments:
    """Random access to the alignments of a manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        table = open_table(path, made_by="prepare")
        self._batch = table.batch
        metadata = table.metadata
        if metadata.get("format") != FORMAT:
            raise ArtefactError(
                f"{path}: is {metadata.get('format', 'no alignment table')}, expected {FORMAT}; "
                "redo=prepare makes it again"
            )
        self.phones: list[str] = json.loads(metadata["phones"])
        """The inventory, sorted: `phones[i]` is the name of phone `i`."""

    @staticmethod
    def open(path: str | Path) -> Alignments:
        """Opens `alignments.arrow` (the file, or the folder that holds it) in O(1)."""
        path = Path(path).absolute()
        return Alignments(path / "alignments.arrow" if path.is_dir() else path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Alignments, (self.path,)

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def rows(self) -> NDArray[np.int64]:
        """The manifest rows that have an alignment, ascending (N,). A read-only view of the
        file.
        """
        return self._batch.column(0).to_numpy(zero_copy_only=True)

    def has(self, row: int) -> bool:
        """True when a manifest row has an alignment."""
        return self._position(row) is not None

    def intervals(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Phone numbers, starts and ends (each (P,), in samples of the utterance) of a row. Raises
        DataError when it has none.
        """
        position = self._position(row)
        if position is None:
            raise DataError(
                f"{self.path}: row {row} has no alignment; check has(row) first, or skip the row"
            )
        phones, starts, ends = (
            self._batch.column(column)[position].values.to_numpy() for column in (1, 2, 3)
        )
        return phones, starts, ends

    def frame_phone_ids(
        self, row: int, num_frames: int, grid: FrameGrid = MODEL_GRID
    ) -> NDArray[np.int32]:
        """The phone at the centre sample of each frame, as a number (T,); NO_PHONE (-1) in gaps and
        after the last phone.
        """
        phones, starts, ends = self.intervals(row)
        centres = np.arange(num_frames, dtype=np.int64) * grid.hop + grid.centre_sample(0)
        ids = np.full(num_frames, NO_PHONE, dtype=np.int32)
        if not len(ends):
            return ids
        # The last phone that starts at or before the centre; -1 where none has started.
        position = np.searchsorted(starts, centres, side="right") - 1
        inside = (position >= 0) & (centres < ends[position])
        ids[inside] = phones[position[inside]]
        return ids

    def frame_phones(self, row: int, num_frames: int, grid: FrameGrid = MODEL_GRID) -> list[str]:
        """The phone at the centre sample of each frame, by name (T); "" where there is none."""
        names = [*self.phones, ""]
        return [names[i] for i in self.frame_phone_ids(row, num_frames, grid)]

    def _position(self, row: int) -> int | None:
        rows = self.rows()
        position = int(np.searchsorted(rows, row))
        return position if position < len(rows) and rows[position] == row else None


def write_alignments(path: Path, alignments: Iterable[tuple[int, Phones]]) -> None:
    """Writes `alignments.arrow` atomically from (manifest row, phones) pairs, in the memory of a
    chunk of them.

    Raises:
        DataError: the phones of a row are not in order.
        ValueError: the rows are not in ascending order.
    """
    pairs = iter(alignments)
    number = dict[str, int]()
    types = {
        "row": pa.int64(),
        "phones": pa.large_list(pa.int32()),
        "starts": pa.large_list(pa.int64()),
        "ends": pa.large_list(pa.int64()),
    }
    with ColumnSpool(path.with_name(f".{path.name}.columns"), types) as spool:
        last = -1
        while chunk := list(islice(pairs, CHUNK)):
            for row, phones in chunk:
                if row <= last:
                    raise ValueError(
                        f"alignment of row {row} after that of row {last}, expected ascending rows"
                    )
                _check(row, phones)
                last = row
            spool.append(
                {
                    "row": [row for row, _ in chunk],
                    "phones": [
                        [number.setdefault(phone, len(number)) for phone, _, _ in phones]
                        for _, phones in chunk
                    ],
                    "starts": [[start for _, start, _ in phones] for _, phones in chunk],
                    "ends": [[end for _, _, end in phones] for _, phones in chunk],
                }
            )
        inventory = sorted(number)
        # Phones were numbered as they came; all of them are known only now.
        final = {phone: place for place, phone in enumerate(inventory)}
        numbers = np.array([final[phone] for phone in number], dtype=np.int32)
        spool.replace("phones", lambda values: numbers[values])
        write_table(
            path,
            spool.columns(),
            {"format": FORMAT, "phones": json.dumps(inventory, ensure_ascii=False)},
        )


def _check(row: int, phones: Phones) -> None:
    previous = 0
    for phone, start, end in phones:
        if not phone or start < previous or end < start:
            raise DataError(
                f"alignment of row {row}: phone {phone!r} at samples {start}..{end} after "
                f"{previous}; expected named phones in order without overlaps, fix the alignment"
            )
        previous = end
