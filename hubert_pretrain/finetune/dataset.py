"""Padded micro-batches of whole utterances. B utterances, S samples, T frames, D width, U label
tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.finetune.batching import PaddedBucketSampler
from hubert_pretrain.finetune.feature_cache import FeatureCache
from hubert_pretrain.finetune.masks import MaskSampler
from hubert_pretrain.finetune.task import Examples, Labels, strings
from hubert_pretrain.finetune.waveforms import read_whole
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.training.dataloading import ResumableSampler, equal_share, loader, to_device

Batch = dict[str, Any]


class TrainingDataset(Dataset[Batch]):
    """Padded micro-batches with labels and masks. Item ``g`` is micro-batch ``g`` of the plan, a
    pure function of (seed, g); there is no last one.

    | key | shape | |
    |---|---|---|
    | waveform | (B, S) float32 | 0 in padding |
    | num_samples | (B,) | real samples |
    | valid | (B, T) bool | True for real frames |
    | labels | (B, U) int64 or float32 | padded with 0 |
    | label_lengths | (B,) | |
    | mask, channel_mask | (V B, T), (V B, D) bool | True = masked; of V views each |
    | step, index | int | |
    | step_utterances | int | divides the loss of the whole step |
    | padded_samples | int | V times B times S |

    With a cache of a frozen encoder's outputs there are no waveforms and no masks, but `features`
    (B, L, T, D) float32, and `valid` is of their frames.
    """

    def __init__(
        self,
        corpus: Corpus,
        examples: Examples,
        plan: PaddedBucketSampler,
        model: Hubert,
        masks: MaskSampler,
        cache: FeatureCache | None = None,
        views: int = 1,
    ) -> None:
        """
        Args:
            model: gives frame grid, width, and whether waveforms are normalised.
            masks: of (views x B) rows.
            cache: outputs of the encoder.
        """
        self.corpus = corpus
        self.cache = cache
        self.views = views
        self.plan = plan
        self.masks = masks
        self.grid = model.grid
        self.width = model.config.hidden_size
        self.normalize = model.config.normalize_waveform
        # Two arrays, not a list for each utterance: reading a list changes its reference count, so
        # every worker would get a copy of its memory page.
        order = np.argsort(examples.rows)
        self._rows = examples.rows[order]
        labels = [examples.labels[i] for i in order.tolist()]
        self._ends = np.cumsum([len(ids) for ids in labels])
        self._ids = _flat(labels)

    def __getitem__(self, index: int) -> Batch:
        planned = self.plan.micro_batch(index)
        rows = planned.rows.tolist()
        labels = [self._labels(row) for row in rows]
        batch = {
            "labels": _stack(labels, max(map(len, labels))),
            "label_lengths": torch.tensor([len(ids) for ids in labels]),
            "step": planned.step,
            "index": index,
            "step_utterances": self.plan.utterances(planned.step),
            "padded_samples": len(rows) * planned.num_samples * self.views,
        }
        if self.cache is not None:
            return batch | self._features(self.cache, rows)
        waveforms = [read_whole(self.corpus, row, self.normalize) for row in rows]
        num_frames = [int(self.grid.num_frames(len(waveform))) for waveform in waveforms]
        longest = int(self.grid.num_frames(planned.num_samples))  # T
        mask, channel_mask = self.masks.draw(
            rows, num_frames, (longest, self.width), step=planned.step, index=index
        )
        return batch | {
            "waveform": _stack(waveforms, planned.num_samples),
            "num_samples": torch.tensor([len(waveform) for waveform in waveforms]),
            "valid": torch.arange(longest) < torch.tensor(num_frames)[:, None],
            "mask": torch.from_numpy(mask),
            "channel_mask": torch.from_numpy(channel_mask),
        }

    @staticmethod
    def _features(cache: FeatureCache, rows: list[int]) -> Batch:
        found = [torch.tensor(cache.read(row)) for row in rows]  # (L, T, D) each
        num_frames = torch.tensor([each.shape[1] for each in found])
        longest = int(num_frames.max())
        padded = [F.pad(each, (0, 0, 0, longest - each.shape[1])) for each in found]
        return {
            "features": torch.stack(padded),
            "valid": torch.arange(longest) < num_frames[:, None],
        }

    def _labels(self, row: int) -> NDArray[Any]:
        place = int(np.searchsorted(self._rows, row))
        start = self._ends[place - 1] if place else 0
        return _wide(self._ids[start : self._ends[place]])

    def describe(self, index: int) -> str:
        """Step and utterance ids of a micro-batch, for messages."""
        planned = self.plan.micro_batch(index)
        ids = strings(self.corpus.manifest, "id", planned.rows)
        shown = ", ".join(ids[:8]) + (", ..." if len(ids) > 8 else "")
        return f"step {planned.step} (micro-batch {index}: {shown})"


class WholeUtterances(Dataset[Batch]):
    """Item ``i`` is example ``i`` alone, a batch of one without padding: its prediction depends on
    nothing else.

    Indices beyond the last example start again at the first, with ``counts`` False: so every rank
    gets equally many, see `equal_share`.
    """

    def __init__(
        self, corpus: Corpus, examples: Examples, model: Hubert, cache: FeatureCache | None = None
    ) -> None:
        """
        Args:
            cache: outputs of a frozen encoder; an item has `features` (1, L, T, D) then, not a
                waveform.
        """
        self.corpus = corpus
        self.examples = examples
        self.cache = cache
        self.normalize = model.config.normalize_waveform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Batch:
        example = index % len(self)
        row = int(self.examples.rows[example])
        labels = self.examples.labels[example]
        if self.cache is not None:
            sound = {"features": torch.tensor(self.cache.read(row))[None]}
        else:
            waveform = read_whole(self.corpus, row, self.normalize)
            sound = {"waveform": torch.from_numpy(waveform)[None]}
        return {
            **sound,
            "num_samples": int(self.corpus.manifest.num_samples[row]),
            "labels": torch.from_numpy(_wide(_flat([labels])))[None],
            "label_lengths": torch.tensor([len(labels)]),
            "id": self.corpus.manifest[row].id,
            "reference": self.examples.references[example],
            "has_loss": example not in self.examples.without_loss,
            "counts": index < len(self),
        }


def loaders(
    trainer: L.Trainer, train: TrainingDataset, valid: WholeUtterances, *, workers: int
) -> tuple[Iterable[Batch], DataLoader[Batch]]:
    """This rank's training stream from the trainer's step on, and its share of the validation."""
    rank = trainer.global_rank
    world_size = trainer.world_size
    indices = ResumableSampler(
        lambda: trainer.global_step,
        steps=trainer.max_steps,
        micro_batches=train.plan.micro_batches,
        rank=rank,
        world_size=world_size,
    )
    stream = loader(train, indices, workers=workers)
    share = equal_share(len(valid), rank, world_size)
    return (
        to_device(trainer.strategy.root_device, stream),
        loader(valid, share, workers=workers),
    )


def _flat(labels: Sequence[Labels]) -> NDArray[Any]:
    """The labels of several utterances as one array: float32 numbers, or ids, which stay int16
    where they are.
    """
    arrays = [np.asarray(each) for each in labels if len(each)]
    if not arrays:
        return np.zeros(0, np.int64)
    flat = np.concatenate(arrays)
    if flat.dtype.kind == "f":
        return flat.astype(np.float32)
    return flat if flat.dtype == np.int16 else flat.astype(np.int64)


def _wide(labels: NDArray[Any]) -> NDArray[Any]:
    """Ids as int64."""
    return labels if labels.dtype.kind == "f" else labels.astype(np.int64)


def _stack(arrays: list[NDArray[Any]], length: int) -> Tensor:
    """Arrays of different lengths as one tensor (B, length), padded with 0 (False)."""
    stacked = np.zeros((len(arrays), length), dtype=arrays[0].dtype)
    for row, values in enumerate(arrays):
        stacked[row, : len(values)] = values
    return torch.from_numpy(stacked)
