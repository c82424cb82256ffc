"""A page of ten million utterances: it reads no more of them than that of ten thousand."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE
from hubert_pretrain.report import clips, contents, units

Ints = NDArray[np.int64]


class CountedManifest:
    """Rows that exist only when they are asked for. A thousandth is for validation."""

    def __init__(self, size: int, counts: Counter[str]) -> None:
        self.size = size
        self.counts = counts
        self.splits = ["train", "valid"]

    def split_range(self, split: str) -> range:
        first = self.size - self.size // 1000
        return range(first) if split == "train" else range(first, self.size)

    def rows(self, split: str | None = None) -> Ints:
        found = range(self.size) if split is None else self.split_range(split)
        return np.arange(found.start, found.stop)

    def take(self, name: str, rows: Ints) -> Any:
        self.counts[f"manifest: {name}"] += len(rows)
        values = [f"{name}-{row % 7 if name == 'speaker' else row}" for row in rows.tolist()]
        column = pa.array(values)
        return column.dictionary_encode() if name == "speaker" else column

    def number(self, name: str, row: int) -> int:
        self.counts[f"manifest: {name}"] += 1
        return SAMPLE_RATE


class CountedStore:
    """Targets of 6 units, 49 frames of each utterance."""

    sizes = (6,)
    grid = MODEL_GRID

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts

    def target_matrix(self, row: int) -> NDArray[np.uint16]:
        self.counts["targets"] += 1
        return (np.arange(49, dtype=np.uint16)[:, None] // 7 + row % 6) % 6


class CountedAlignments:
    """Two phones, in every utterance."""

    phones = ("a", "b")

    def __init__(self, size: int, counts: Counter[str]) -> None:
        self.size = size
        self.counts = counts

    def __len__(self) -> int:
        return self.size

    def rows(self) -> Ints:
        return np.arange(self.size)

    def has(self, row: int) -> bool:
        self.counts["alignments: has"] += 1
        return True

    def frame_phone_ids(self, row: int, num_frames: int, grid: Any) -> Ints:
        self.counts["alignments"] += 1
        return np.arange(num_frames) % 2


def reads_of(size: int) -> Counter[str]:
    """The rows that the tables and the choice of the audio read."""
    counts: Counter[str] = Counter()
    corpus: Any = SimpleNamespace(
        manifest=CountedManifest(size, counts), alignments=CountedAlignments(size, counts)
    )
    store: Any = CountedStore(counts)
    assert units.unit_table(store, corpus, None)["shares"]
    worst = [{"id": f"id-{size - 1}"}]
    tasks = [{"asr": {"splits": {"valid": {"worst": worst}}}}]
    required = contents._rows_of_worst(corpus, tasks)
    assert clips.choose([store], corpus, required)[0] == size - 1
    return counts


def test_reads_do_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MOST_IDS", 10_000)
    small = reads_of(1_000_000)
    large = reads_of(10_000_000)
    ids = [each.pop("manifest: id") for each in (small, large)]
    assert ids == [1000, 10_000]  # of the evaluated split, up to the limit
    assert small == large
    assert large["targets"] == 2 * units.MAX_ROWS + clips.CANDIDATES + 1
    assert large["manifest: speaker"] == units.MAX_ROWS + 2  # and one for the names
