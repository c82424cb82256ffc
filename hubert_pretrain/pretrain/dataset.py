"""Micro-batches as tensors: crops of audio, the targets of exactly those frames, and the span mask.

Shapes: B utterances, S samples, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from hubert_pretrain.data import audio
from hubert_pretrain.data.batches import BatchPlan, MicroBatch
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.masking import fixed_count, span_mask
from hubert_pretrain.seeds import generator

CACHE_BYTES = 512 * 1024**2
"""A split whose decoded audio fits into this much memory (2.3 hours) is decoded once per process instead of once per epoch."""


@dataclass(frozen=True, kw_only=True)
class SpanMasking:
    """Which frames are hidden (model/masking.py), seeded."""

    seed: int
    probability: float
    span_frames: int
    min_spans: int

    def mask(self, micro_batch: MicroBatch, purpose: str) -> NDArray[np.bool_]:
        """(B, T), True = hidden: `masked_frames` in every row, a pure function of (seed, number of the micro-batch, manifest row)."""
        return np.stack([self._row(micro_batch, purpose, row) for row in micro_batch.rows.tolist()])

    def _row(self, micro_batch: MicroBatch, purpose: str, row: int) -> NDArray[np.bool_]:
        shape, draw = micro_batch.shape, generator(self.seed, purpose, micro_batch.index, row)
        mask = span_mask(
            shape.num_frames, probability=self.probability, span_frames=self.span_frames, min_spans=self.min_spans, generator=draw
        )
        return fixed_count(mask, shape.masked_frames, span_frames=self.span_frames, generator=draw)


@dataclass
class CropReader:
    """Reads crops of a prepared corpus, normalised with the statistics of the whole utterance when the model wants that."""

    corpus: Corpus
    grid: FrameGrid
    normalize: bool
    cached: bool
    """Whether to keep decoded utterances in memory."""
    _cache: dict[int, NDArray[np.float32]] = field(default_factory=dict, init=False, repr=False)

    @staticmethod
    def over(corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid, *, normalize: bool) -> CropReader:
        """A reader for these rows, which remembers what it has decoded if all of it fits into `CACHE_BYTES`."""
        cached = int(corpus.manifest.num_samples[rows].sum()) * np.float32().nbytes <= CACHE_BYTES
        return CropReader(corpus, grid, normalize, cached)

    def read(self, row: int, start_frame: int, num_frames: int) -> NDArray[np.float32]:
        """Waveform (S,) of exactly `num_frames` frames from `start_frame` on."""
        start, length = self.grid.start_sample(start_frame), self.grid.num_samples(num_frames)
        if not self.cached:
            return self._normalised(row, self.corpus.read(row, start, length))
        if row not in self._cache:
            self._cache[row] = self._normalised(row, self.corpus.read(row))
        return self._cache[row][start : start + length]

    def _normalised(self, row: int, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalize:
            return waveform
        utterance = self.corpus.manifest[row]
        return audio.normalize(waveform, utterance.mean, utterance.variance)


class MicroBatches(Dataset[dict[str, Any]]):
    """Item g is micro-batch g of the training stream. Holds no position: any process may be asked for any item."""

    def __init__(self, plan: BatchPlan, reader: CropReader, targets: Callable[[int], NDArray[np.uint16]], masking: SpanMasking) -> None:
        self.plan, self.reader, self.targets, self.masking = plan, reader, targets, masking

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `_tensors`; plus `step_frames`, the (hidden, all) frames of the whole step."""
        item = _tensors(self.plan.micro_batch(index), self.reader, self.targets, self.masking, "mask")
        return item | {"step_frames": self.plan.step_frames(index // self.plan.micro_batches)}


class ValidationBatches(Dataset[dict[str, Any]]):
    """The micro-batches of `BatchPlan.cover`, with masks that are the same at every validation."""

    def __init__(
        self, micro_batches: Sequence[MicroBatch], reader: CropReader, targets: Callable[[int], NDArray[np.uint16]], masking: SpanMasking
    ) -> None:
        self.micro_batches, self.reader, self.targets, self.masking = micro_batches, reader, targets, masking

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `_tensors`."""
        return _tensors(self.micro_batches[index], self.reader, self.targets, self.masking, "valid mask")


class FromStep(Sampler[int]):
    """Numbers of this rank's micro-batches, from the first of the step that the trainer has reached to the end of training.

    The position is read when iteration starts: after a checkpoint was loaded, it is that of the checkpoint. It has no length on
    purpose, so that Lightning sees one endless epoch and does not count batches that a resumed run skips.
    """

    def __init__(self, reached: Callable[[], int], *, steps: int, micro_batches: int, rank: int, world_size: int) -> None:
        self.reached, self.steps, self.micro_batches = reached, steps, micro_batches
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[int]:
        first, last = self.reached() * self.micro_batches, self.steps * self.micro_batches
        return iter(range(first + self.rank, last, self.world_size))


def loader(dataset: Dataset[dict[str, Any]], sampler: Any, *, workers: int) -> DataLoader[dict[str, Any]]:
    """A stateless loader: the sampler says what comes, workers only decode ahead (0: in this process)."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )


def _tensors(
    micro_batch: MicroBatch, reader: CropReader, targets: Callable[[int], NDArray[np.uint16]], masking: SpanMasking, purpose: str
) -> dict[str, Any]:
    """{"waveform" (B, S) float32, "targets" (B, T) int64, "mask" (B, T) bool, "masked_frames" int in all, "index" int}."""
    frames = micro_batch.shape.num_frames
    crops = list(zip(micro_batch.rows.tolist(), micro_batch.starts.tolist(), strict=True))
    waveform = np.stack([reader.read(row, start, frames) for row, start in crops])
    ids = np.stack([targets(row)[start : start + frames] for row, start in crops]).astype(np.int64)
    return {
        "waveform": torch.from_numpy(waveform),
        "targets": torch.from_numpy(ids),
        "mask": torch.from_numpy(masking.mask(micro_batch, purpose)),
        "masked_frames": micro_batch.shape.masked_frames * len(crops),
        "index": micro_batch.index,
    }
