"""Micro-batches as tensors: crops of audio, the targets of exactly those frames, and the span mask.

Shapes: B utterances, S samples, T frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hubert_pretrain.data.augment import Augmentation
from hubert_pretrain.data.batching import BucketSampler, MicroBatch
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.masking import fixed_count, span_mask
from hubert_pretrain.model.preprocess import normalize_
from hubert_pretrain.pretrain.loss import IGNORED
from hubert_pretrain.seeds import generator
from hubert_pretrain.training.dataloading import ResumableSampler, equal_share, loader, to_device
from hubert_pretrain.training.limits import CACHE_BYTES


def draw_masks(
    micro_batch: MicroBatch, spans: SpanMask, seed: int, purpose: str
) -> NDArray[np.bool_]:
    """(B, T), True = masked: `masked_frames` in every row, a pure function of (seed, number of the
    micro-batch, manifest row).
    """
    shape = micro_batch.shape
    masks = []
    for row in micro_batch.rows.tolist():
        draw = generator(seed, purpose, micro_batch.index, row)
        mask = span_mask(shape.num_frames, spans, draw)
        masks.append(
            fixed_count(mask, shape.masked_frames, span_frames=spans.span_frames, generator=draw)
        )
    return np.stack(masks)


class CropSource:
    """Micro-batches as tensors: reads the audio, looks up the targets, draws the masks."""

    def __init__(
        self,
        corpus: Corpus,
        targets: Callable[[int], NDArray[Any]],
        *,
        split: str,
        grid: FrameGrid,
        normalize: bool,
        spans: SpanMask,
        seed: int,
        augmentation: Augmentation | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        """
        Args:
            targets: manifest row -> cluster ids (T,), or (T, N) for several codebooks, or soft
                targets (T, K) as floats.
            split: of the rows that will be read.
            grid: of the network's frames.
            normalize: whether waveforms are normalised; see HubertConfig.
            spans: settings of the masks.
            seed: of the masks.
            augmentation: of the audio of a micro-batch; None: none.
            cache_bytes: a split whose audio takes no more than this as float32 is decoded once and
                stays in memory; None: CACHE_BYTES.
        """
        self.corpus = corpus
        self.targets = targets
        self.grid = grid
        self.normalize = normalize
        self.spans = spans
        self.seed = seed
        self.augmentation = augmentation
        num_samples = sum(group.total_samples for group in corpus.manifest.length_sorted(split))
        limit = CACHE_BYTES if cache_bytes is None else cache_bytes
        self._is_cached = num_samples * np.float32().nbytes <= limit
        self._cache: dict[int, NDArray[np.float32]] = {}

    def tensors(self, micro_batch: MicroBatch, purpose: str) -> dict[str, Any]:
        """The tensors of a micro-batch.

        | key | shape | |
        |---|---|---|
        | waveform | (B, S) float32 | |
        | targets | (B, T) int64 | (B, T, N) for several codebooks; soft ones (B, T, K) float32 |
        | mask | (B, T) bool | True = masked |
        | masked_frames | int | of all rows together |
        | counted_rows | int | the others only make the shape full: their targets are ignored |
        | index | int | number of the micro-batch |
        """
        frames = micro_batch.shape.num_frames
        crops = list(zip(micro_batch.rows.tolist(), micro_batch.starts.tolist(), strict=True))
        targets = np.stack([self.targets(row)[start : start + frames] for row, start in crops])
        is_soft = np.issubdtype(targets.dtype, np.floating)
        targets = targets.astype(np.float32 if is_soft else np.int64)
        targets[micro_batch.counted_rows :] = 0 if is_soft else IGNORED
        mask = draw_masks(micro_batch, self.spans, self.seed, purpose)
        return {
            "waveform": torch.from_numpy(self.waveform(micro_batch)),
            "targets": torch.from_numpy(targets),
            "mask": torch.from_numpy(mask),
            "masked_frames": micro_batch.shape.masked_frames * len(crops),
            "counted_rows": micro_batch.counted_rows,
            "index": micro_batch.index,
        }

    def waveform(self, micro_batch: MicroBatch) -> NDArray[np.float32]:
        """The audio of a micro-batch, (B, S)."""
        frames = micro_batch.shape.num_frames
        rows = micro_batch.rows.tolist()
        starts = micro_batch.starts.tolist()
        waveform = np.empty((len(rows), self.grid.num_samples(frames)), dtype=np.float32)
        for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
            self.read(row, start, frames, out=waveform[b])
        if self.augmentation is None:
            return waveform
        return self._augmented(waveform, micro_batch, self.augmentation)

    def read(
        self, row: int, start_frame: int, num_frames: int, out: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Read a crop of exactly `num_frames` frames into `out` (S,).

        It is normalised by mean and variance of the whole utterance; with an augmentation it is not
        normalised yet: that comes after it.
        """
        start = self.grid.start_sample(start_frame)
        length = self.grid.num_samples(num_frames)
        if not self._is_cached:
            return self._before_augmentation(row, self.corpus.read(row, start, length, out))
        if row not in self._cache:
            self._cache[row] = self._before_augmentation(row, self.corpus.read(row))
        out[:] = self._cache[row][start : start + length]
        return out

    def _augmented(
        self, waveform: NDArray[np.float32], micro_batch: MicroBatch, augment: Augmentation
    ) -> NDArray[np.float32]:
        """(B, S) augmented, then normalised.

        A row that changed is normalised by its own mean and variance, noise included: at inference,
        too, a recording is normalised with its noise in it, and mean and variance of the whole
        utterance with noise are not known. The others are as without augmentation.
        """
        rows = micro_batch.rows.tolist()
        waveform, changed = augment(waveform, index=micro_batch.index, rows=rows)
        if not self.normalize:
            return waveform
        for b, row in enumerate(rows):
            if changed[b]:
                mean = float(waveform[b].mean())
                waveform[b] = normalize_(waveform[b], mean, float(waveform[b].var()))
            else:
                waveform[b] = self._normalised(row, waveform[b])
        return waveform

    def _before_augmentation(self, row: int, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._normalised(row, waveform) if self.augmentation is None else waveform

    def _normalised(self, row: int, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalize:
            return waveform
        number = self.corpus.manifest.number
        return normalize_(waveform, float(number("mean", row)), float(number("variance", row)))


class MicroBatches(Dataset[dict[str, Any]]):
    """Item g is micro-batches [g, g + fuse) of the training stream, for one forward pass. It has no
    position: any process may read any item.
    """

    def __init__(self, plan: BucketSampler, source: CropSource, fuse: int = 1) -> None:
        """`fuse`: from `BucketSampler.fuse`, so that its micro-batches have one shape."""
        self.plan = plan
        self.source = source
        self.fuse = fuse

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`CropSource.tensors`; `step`, from 0; `step_frames`: (masked, all) frames of the whole
        step; and `micro_batches`: how many these are.
        """
        units = map(self.plan.micro_batch, range(index, index + self.fuse))
        item = joined([self.source.tensors(unit, "mask") for unit in units])
        step = index // self.plan.micro_batches
        step_frames = self.plan.step_frames(step)
        return item | {"step": step, "step_frames": step_frames, "micro_batches": self.fuse}


def joined(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Micro-batches of one shape as one, with the index of the first."""
    first, *others = items
    if not others:
        return first
    tensors = {
        name: torch.cat([item[name] for item in items])
        for name, value in first.items()
        if isinstance(value, torch.Tensor)
    }
    masked_frames = sum(item["masked_frames"] for item in items)
    return first | tensors | {"masked_frames": masked_frames}


class ValidationBatches(Dataset[dict[str, Any]]):
    """Micro-batches that cover a split, with masks that are the same at every validation.

    Indices beyond the last one start again at the first and count nothing: so every rank gets
    equally many, see `equal_share`.
    """

    def __init__(self, micro_batches: Sequence[MicroBatch], source: CropSource) -> None:
        self.micro_batches = micro_batches
        self.source = source

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`CropSource.tensors`; no row counts of one that only keeps a rank in step."""
        micro_batch = self.micro_batches[index % len(self)]
        if index >= len(self):
            micro_batch = dataclasses.replace(micro_batch, fillers=len(micro_batch.rows))
        return self.source.tensors(micro_batch, "valid mask")


def loaders(
    trainer: L.Trainer,
    plan: BucketSampler,
    *,
    train: CropSource,
    valid: CropSource,
    workers: int,
    fuse: int = 1,
) -> tuple[Iterable[Any], DataLoader[Any]]:
    """This rank's training stream from the trainer's step on, and its share of the `valid` split.

    Raises DataError when no utterance of `valid` is as long as the shortest crop.
    """
    manifest = valid.corpus.manifest
    utterances = manifest.length_sorted("valid")
    covered = plan.validation(utterances)
    if not covered:
        raise DataError(
            f"{manifest.path}: {sum(map(len, utterances))} utterances in split 'valid', none as "
            f"long as the shortest crop ({plan.shapes[0].num_frames} frames); raise "
            "data.valid_fraction, or give the corpus a 'valid' split"
        )
    rank = trainer.global_rank
    world_size = trainer.world_size
    indices = ResumableSampler(
        lambda: trainer.global_step,
        steps=trainer.max_steps,
        micro_batches=plan.micro_batches,
        rank=rank,
        world_size=world_size,
        fuse=fuse,
    )
    stream = loader(MicroBatches(plan, train, fuse), indices, workers=workers)
    share = equal_share(len(covered), rank, world_size)
    return (
        to_device(trainer.strategy.root_device, stream),
        loader(ValidationBatches(covered, valid), share, workers=workers),
    )


def describe_micro_batch(
    index: int, *, plan: BucketSampler, manifest: Manifest, fuse: int = 1
) -> str:
    """Step and utterance ids of a forward pass, for messages."""
    units = map(plan.micro_batch, range(index, index + fuse))
    ids = ", ".join(manifest[row].id for unit in units for row in unit.rows.tolist())
    return f"step {index // plan.micro_batches + 1}, utterances {ids}"
