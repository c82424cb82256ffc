"""Segments of units as a table for viewers of embeddings: a Parquet file, written as it is made.

A segment is a run of one unit of the first codebook. Its place (x, y) is the mean of its frames on
the first two principal components of segment means, which are estimated on some utterances.

Letters: T frames of an utterance, N frames of several, D width of a frame, R segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.clustering.pca import Transform, fit_pca
from hubert_pretrain.clustering.quality import run_lengths
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.features.corpus_frames import map_frames, map_groups
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.files import replacing
from hubert_pretrain.frames import seconds
from hubert_pretrain.targets.quality import evenly_spaced
from hubert_pretrain.targets.store import TargetStore

FIT_ROWS = 200
"""Utterances that the principal components are estimated on, evenly spaced."""
FIT_GROUP = 8
"""Of these, the number whose frames are in memory at once."""
ROW_GROUP = 50_000
"""Segments, about, in a row group of the file: what is held in memory."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("unit", pa.int32()),
        ("start", pa.float32()),
        ("end", pa.float32()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("speaker", pa.dictionary(pa.int32(), pa.string())),
        ("phone", pa.dictionary(pa.int32(), pa.string())),
        ("path", pa.string()),
    ],
    metadata={"x, y": "mean of the frames on the first two principal components of segment means"},
)
"""start and end in seconds; phone: the one of the middle frame, null where there is none."""


@dataclass(frozen=True)
class SegmentTable:
    """Segments of the targets of one iteration."""

    corpus: Corpus
    store: TargetStore
    extractor: FeatureExtractor
    """The features that were clustered."""
    device: torch.device
    workers: int

    def write(self, path: Path, rows: NDArray[np.int64]) -> int:
        """Write the segments of some utterances, in the order of the manifest; returns their
        number.
        """
        projection = self.fit(evenly_spaced(rows, FIT_ROWS))
        count = 0
        with (
            replacing(path) as temporary,
            pa.parquet.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer,
        ):
            for table in self.tables(rows, projection):
                writer.write_table(table)
                count += table.num_rows
        return count

    def fit(self, rows: NDArray[np.int64]) -> Transform:
        """The plane of segments (D -> 2)."""
        groups = [rows[start : start + FIT_GROUP] for start in range(0, len(rows), FIT_GROUP)]
        found = map_groups(
            self.corpus,
            groups,
            self.extractor,
            lambda frames: frames.cpu(),
            device=self.device,
            workers=self.workers,
            description="components",
        )
        means = [
            segment_means(frames, run_lengths(self.ids(row))[0])
            for group, results in zip(groups, found, strict=True)
            for row, frames in zip(group.tolist(), results, strict=True)
        ]
        return fit_pca(torch.cat(means), dims=2)

    def tables(self, rows: NDArray[np.int64], projection: Transform) -> Iterator[pa.Table]:
        """The segments, ROW_GROUP at a time or a few more."""
        on_device = projection.to(self.device)
        places = map_frames(
            self.corpus,
            rows,
            self.extractor,
            lambda frames: on_device(frames).cpu(),
            device=self.device,
            workers=self.workers,
            description="segments",
            framewise=True,
        )
        held: list[pa.Table] = []
        for row, frames in zip(rows.tolist(), places, strict=True):
            held.append(self.of_utterance(row, frames))
            if sum(each.num_rows for each in held) >= ROW_GROUP:
                yield pa.concat_tables(held).unify_dictionaries()
                held = []
        if held:
            yield pa.concat_tables(held).unify_dictionaries()

    def of_utterance(self, row: int, places: Tensor) -> pa.Table:
        """The segments of one utterance. places: (T, 2)."""
        utterance = self.corpus.manifest[row]
        ids = self.ids(row)
        starts, lengths = run_lengths(ids)
        means = segment_means(places, starts).numpy()  # (R, 2)
        hop = seconds(self.store.grid.hop)
        count = len(starts)
        columns = {
            "id": [utterance.id] * count,
            "unit": ids[starts].astype(np.int32),
            "start": (starts * hop).astype(np.float32),
            "end": ((starts + lengths) * hop).astype(np.float32),
            "x": means[:, 0],
            "y": means[:, 1],
            "speaker": [utterance.speaker] * count,
            "phone": self.phones(row, len(ids), starts + lengths // 2),
            "path": [utterance.path] * count,
        }
        arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
        return pa.Table.from_arrays(arrays, schema=SCHEMA)

    def ids(self, row: int) -> NDArray[np.integer]:
        """The units (T,) of an utterance."""
        return self.store.target_matrix(row)[:, 0]

    def phones(self, row: int, num_frames: int, middles: NDArray[np.int64]) -> list[str | None]:
        """The phone of some frames."""
        alignments = self.corpus.alignments
        if alignments is None or not alignments.has(row):
            return [None] * len(middles)
        names = alignments.frame_phones(row, num_frames, self.store.grid)
        return [names[frame] or None for frame in middles.tolist()]


def segment_means(frames: Tensor, starts: NDArray[np.int64]) -> Tensor:
    """Mean of the frames (T, D) of each segment: (R, D). starts: first frames (R,)."""
    lengths = np.diff(np.append(starts, len(frames)))
    numbers = torch.from_numpy(np.repeat(np.arange(len(starts)), lengths))
    sums = torch.zeros(len(starts), frames.shape[1]).index_add_(0, numbers, frames.float())
    return sums / torch.from_numpy(lengths)[:, None].float()
