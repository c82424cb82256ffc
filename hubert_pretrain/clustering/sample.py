"""Which utterances a codebook is fitted on, and their frames. N frames, D width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.features.extractor import Extractor
from hubert_pretrain.features.stream import map_frames
from hubert_pretrain.frames import samples
from hubert_pretrain.seeds import permute

MIN_HOURS = 1.0
"""A share of a small corpus is not taken below this: one hour gives a codebook within 0.012 PNMI of 100 hours, minutes do not."""
MEMORY_BYTES = 4 << 30
"""Larger samples lie in a memory-mapped scratch file: 100 hours of 768-dimensional frames are 55 GB."""
SCRATCH = "frames.scratch"


def choose_rows(
    num_samples: NDArray[np.int64], rows: NDArray[np.int64], *, fraction: float, max_hours: float, seed: int
) -> NDArray[np.int64]:
    """A random subset of whole utterances, in ascending order; a pure function of its arguments.

    Utterances are taken in the order of a seeded hash of their place, until they hold `fraction` of the audio, but at least an hour
    (or everything) and at most `max_hours` (or a single utterance).

    Args:
        num_samples: length of every utterance of the manifest, in samples.
        rows: the rows to choose from.
        fraction: share of their audio, in (0, 1].
        max_hours: never more than this.
        seed: of the run.
    """
    if len(rows) == 0:
        raise DataError("no utterances to cluster: the corpus has none in split 'train'; give it some and run stage=prepare again")
    order = rows[permute(np.arange(len(rows)), len(rows), seed, "codebook sample")]
    lengths = num_samples[order]
    wanted = min(max(fraction * int(lengths.sum()), samples(MIN_HOURS * 3600)), samples(max_hours * 3600))
    total = np.cumsum(lengths)
    # The utterance that reaches what is wanted is taken, unless it passes max_hours.
    count = int(np.searchsorted(total, wanted, side="left")) + 1
    if count > 1 and total[min(count, len(rows)) - 1] > samples(max_hours * 3600):
        count -= 1
    return np.sort(order[:count])


def gather(
    corpus: Corpus, rows: NDArray[np.int64], extractor: Extractor, *, scratch: Path, device: torch.device | str = "cpu", workers: int = 1
) -> NDArray[np.float32]:
    """Frames (N, D) float32 of utterances, in the order of `rows`; in memory, or as a memory map in folder `scratch` when they are many."""
    num_frames: NDArray[np.int64] = np.asarray(extractor.grid.num_frames(corpus.manifest.num_samples[rows]))  # type: ignore[arg-type]
    shape = (int(num_frames.sum()), extractor.dim)
    frames: NDArray[np.float32]
    if 4 * shape[0] * shape[1] > MEMORY_BYTES:
        frames = np.lib.format.open_memmap(scratch / SCRATCH, mode="w+", dtype=np.float32, shape=shape)
    else:
        frames = np.empty(shape, dtype=np.float32)
    position = 0
    for part in map_frames(corpus, rows, extractor, _to_numpy, device=device, workers=workers, what="frames for k-means"):
        frames[position : position + len(part)] = part
        position += len(part)
    return frames


def _to_numpy(frames: Tensor) -> NDArray[np.float32]:
    return np.asarray(frames.cpu().numpy(), dtype=np.float32)
