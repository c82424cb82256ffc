"""The steps that a loader must deliver, by any number of workers and ranks, for any corpus: of
files, of shards, mixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.pretrain.dataset import CropSource, MicroBatches
from hubert_pretrain.training.dataloading import ResumableSampler, loader

Steps = dict[int, list[tuple[int, str]]]
"""step -> (number of the micro-batch, hash of its ids, crops, audio, targets and masks), in order
of numbers.
"""


def stream(
    corpus: Corpus, *, micro_batches: int = 4, seed: int = 3, cache_bytes: int = 0
) -> MicroBatches:
    """The training stream over a corpus whose utterances are a second or longer; step n is
    `micro_batches` micro-batches of 4 s.
    """
    plan = BucketSampler(
        corpus.manifest.length_sorted("train"),
        grid=MODEL_GRID,
        seed=seed,
        batch_seconds=4.0 * micro_batches,
        micro_batch_seconds=4.0,
        max_crop_seconds=1.2,
        min_seconds=0.5,
        max_shapes=3,
        masked_frames=lambda frames: frames // 2,
    )
    spans = SpanMask(probability=0.8, span_frames=5, min_spans=2)

    def targets(row: int) -> np.ndarray[Any, Any]:
        return (np.arange(MODEL_GRID.num_frames(corpus.manifest[row].num_samples)) * 7 + row) % 11

    source = CropSource(
        corpus,
        targets,
        split="train",
        grid=MODEL_GRID,
        normalize=True,
        spans=spans,
        seed=seed,
        cache_bytes=cache_bytes,
    )
    return MicroBatches(plan, source)


def expected(items: MicroBatches, steps: int) -> Steps:
    """Digests of all micro-batches in order, without a loader."""
    return by_step(
        items,
        ((index, digest(items, items[index])) for index in range(steps * items.plan.micro_batches)),
    )


def delivered(
    items: MicroBatches, *, first: int, stop: int, workers: int, rank: int, world_size: int
) -> list[tuple[int, str]]:
    """Digests from the loader of a rank that resumes at step `first`, up to step `stop`."""
    numbers = ResumableSampler(
        lambda: first,
        steps=stop,
        micro_batches=items.plan.micro_batches,
        rank=rank,
        world_size=world_size,
    )
    return [
        (item["index"], digest(items, item)) for item in loader(items, numbers, workers=workers)
    ]


def by_step(items: MicroBatches, found: Iterable[tuple[int, str]]) -> Steps:
    """Micro-batches of all ranks as steps."""
    steps: Steps = {}
    for index, content in sorted(found):
        steps.setdefault(index // items.plan.micro_batches, []).append((index, content))
    return steps


def digest(items: MicroBatches, item: dict[str, Any]) -> str:
    """Hash of all that a micro-batch holds, and of the ids and crops that the plan says it
    holds.
    """
    batch = items.plan.micro_batch(item["index"])
    manifest = items.source.corpus.manifest
    ids = [manifest[row].id for row in batch.rows.tolist()]
    parts = [
        repr((ids, batch.starts.tolist(), tuple(item["step_frames"]))).encode()
    ]  # a loader makes a list of a tuple
    parts += [item[name].numpy().tobytes() for name in ("waveform", "targets", "mask")]
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()
