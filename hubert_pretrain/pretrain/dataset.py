"""Micro-batches as tensors: crops of audio, the targets of exactly those frames, and the span mask.

Shapes: B utterances, S samples, T frames.
"""

from __future__ import annotations

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
    """Turns micro-batches into tensors: reads the audio, looks up the targets, draws the masks."""

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
            targets: a manifest row's cluster ids (T,), or (T, N) for several codebooks; or soft
            targets (T, K) as floats. split: of the rows that it will be asked for. normalize: see
            HubertConfig. augmentation: what is done to the audio of a micro-batch; None: nothing.
            cache_bytes: a split whose audio takes no more than this as float32 are kept in memory;
            None: CACHE_BYTES.
        """
        self.corpus = corpus
        self.targets = targets
        self.grid = grid
        self.normalize = normalize
        self.spans = spans
        self.seed = seed
        self.augmentation = augmentation
        num_samples = sum(group.total_samples for group in corpus.manifest.length_sorted(split))
        self._cached = num_samples * np.float32().nbytes <= (
            CACHE_BYTES if cache_bytes is None else cache_bytes
        )
        self._cache: dict[int, NDArray[np.float32]] = {}

    def tensors(self, micro_batch: MicroBatch, purpose: str) -> dict[str, Any]:
        """{"waveform" (B, S) float32, "targets" (B, T) int64, "mask" (B, T) bool, "masked_frames"
        int in all, "index" int}.

        Targets of several codebooks are (B, T, N) int64, soft ones (B, T, K) float32.
        """
        frames = micro_batch.shape.num_frames
        crops = list(zip(micro_batch.rows.tolist(), micro_batch.starts.tolist(), strict=True))
        targets = np.stack([self.targets(row)[start : start + frames] for row, start in crops])
        return {
            "waveform": torch.from_numpy(self.waveform(micro_batch)),
            "targets": torch.from_numpy(
                targets.astype(
                    np.float32 if np.issubdtype(targets.dtype, np.floating) else np.int64
                )
            ),
            "mask": torch.from_numpy(draw_masks(micro_batch, self.spans, self.seed, purpose)),
            "masked_frames": micro_batch.shape.masked_frames * len(crops),
            "index": micro_batch.index,
        }

    def waveform(self, micro_batch: MicroBatch) -> NDArray[np.float32]:
        """The audio of a micro-batch, (B, S)."""
        frames = micro_batch.shape.num_frames
        waveform = np.empty(
            (len(micro_batch.rows), self.grid.num_samples(frames)), dtype=np.float32
        )
        for b, (row, start) in enumerate(
            zip(micro_batch.rows.tolist(), micro_batch.starts.tolist(), strict=True)
        ):
            self.read(row, start, frames, out=waveform[b])
        return (
            waveform
            if self.augmentation is None
            else self._augmented(waveform, micro_batch, self.augmentation)
        )

    def read(
        self, row: int, start_frame: int, num_frames: int, out: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Waveform (S,) of exactly `num_frames` frames from `start_frame` on, in `out`, normalised
        as a part of the whole utterance.

        With an augmentation it is not normalised yet: that comes after it.
        """
        start = self.grid.start_sample(start_frame)
        length = self.grid.num_samples(num_frames)
        if not self._cached:
            return self._kept(row, self.corpus.read(row, start, length, out))
        if row not in self._cache:
            self._cache[row] = self._kept(row, self.corpus.read(row))
        out[:] = self._cache[row][start : start + length]
        return out

    def _augmented(
        self, waveform: NDArray[np.float32], micro_batch: MicroBatch, augment: Augmentation
    ) -> NDArray[np.float32]:
        """(B, S). A row that changed is normalised by its own mean and variance, noise included: at
        inference, too, a recording is normalised with its noise in it, and of the whole utterance
        with noise nothing is known. The others are as without augmentation."""
        rows = micro_batch.rows.tolist()
        waveform, changed = augment(waveform, index=micro_batch.index, rows=rows)
        for b, row in enumerate(rows if self.normalize else []):
            own = changed[b]
            waveform[b] = (
                normalize_(waveform[b], float(waveform[b].mean()), float(waveform[b].var()))
                if own
                else self._normalised(row, waveform[b])
            )
        return waveform

    def _kept(self, row: int, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        return waveform if self.augmentation is not None else self._normalised(row, waveform)

    def _normalised(self, row: int, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.normalize:
            return waveform
        number = self.corpus.manifest.number
        return normalize_(waveform, float(number("mean", row)), float(number("variance", row)))


class MicroBatches(Dataset[dict[str, Any]]):
    """Item g is micro-batch g of the training stream. Holds no position: any process may be asked
    for any item.
    """

    def __init__(self, plan: BucketSampler, source: CropSource) -> None:
        self.plan = plan
        self.source = source

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`CropSource.tensors`, and `step_frames`: the (hidden, all) frames of the whole step."""
        item = self.source.tensors(self.plan.micro_batch(index), "mask")
        return item | {"step_frames": self.plan.step_frames(index // self.plan.micro_batches)}


class ValidationBatches(Dataset[dict[str, Any]]):
    """The micro-batches of `BucketSampler.validation`, with masks that are the same at every validation.

    Beyond the last one they come again and count nothing: every rank has equally many, see
    `even_share`.
    """

    def __init__(self, micro_batches: Sequence[MicroBatch], source: CropSource) -> None:
        self.micro_batches = micro_batches
        self.source = source

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`CropSource.tensors`, and `counts`: 1, or 0 for one that is only there to keep a rank in
        step.
        """
        item = self.source.tensors(self.micro_batches[index % len(self)], "valid mask")
        return item | {"counts": int(index < len(self))}


def loaders(
    trainer: L.Trainer,
    plan: BucketSampler,
    *,
    train: CropSource,
    valid: CropSource,
    workers: int,
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
    )
    stream = loader(MicroBatches(plan, train), indices, workers=workers)
    share = equal_share(len(covered), rank, world_size)
    return (
        to_device(trainer.strategy.root_device, stream),
        loader(ValidationBatches(covered, valid), share, workers=workers),
    )


def describe_micro_batch(index: int, *, plan: BucketSampler, manifest: Manifest) -> str:
    """What a person needs to find a micro-batch: its step and the ids of its utterances."""
    ids = ", ".join(manifest[row].id for row in plan.micro_batch(index).rows.tolist())
    return f"step {index // plan.micro_batches + 1}, utterances {ids}"
