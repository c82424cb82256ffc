"""Which utterances a codebook is fitted on, and their frames. N frames, D width."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.clustering.frame_source import (
    FrameFile,
    RankFrames,
    in_memory,
    share_of_frames,
)
from hubert_pretrain.data.arrow_table import chunks
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.features.corpus_frames import map_groups
from hubert_pretrain.features.extractor import Extractor
from hubert_pretrain.frames import FrameGrid, samples, seconds
from hubert_pretrain.seeds import permute

WORKING_BYTES = 250_000_000
"""For chunks, their scores and products, and the inner products of the start."""


def sample_bytes(budget: int) -> int:
    """For the sample that k-means starts on. A matter of the budget alone, because what comes out
    depends on it.
    """
    return budget // 4


def frame_bytes(budget: int) -> int:
    """For frames, beside the sample and what this process holds already. What does not fit lies on
    the disk; the result is the same.
    """
    return max(0, budget - resident_bytes() - sample_bytes(budget) - WORKING_BYTES)


def resident_bytes() -> int:
    """Memory that this process holds now (where the system does not say: that it ever held)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


MIN_HOURS = 1.0
"""A share of a small corpus is not taken below this: one hour gives a codebook within 0.012 PNMI of
100 hours, minutes do not.
"""
MEMORY_BYTES = 4_000_000_000
"""Larger samples lie in a scratch file: 100 hours of 768-dimensional frames are 55 GB."""
SCRATCH = "frames.scratch"
GROUP_ROWS = 16
"""Utterances that are computed together (features/corpus_frames.py). They are the same whoever
computes them, so a rank may compute up to so many at each end of its share for its neighbour's sake
and throw them away."""


def choose_rows(
    num_samples: NDArray[np.int64],
    rows: NDArray[np.int64] | range,
    *,
    fraction: float,
    max_hours: float,
    seed: int,
) -> NDArray[np.int64]:
    """A random subset of whole utterances, in ascending order; a pure function of its arguments. In
    memory are only those that are chosen.

    Utterances are taken in the order of a seeded hash of their place, until they hold `fraction` of
    the audio, but at least an hour (or everything) and at most `max_hours` (or a single utterance).

    Args:
        num_samples: length of every utterance of the manifest, in samples.
        rows: the rows to choose from, in ascending order; as a range they take no memory either.
        fraction: share of their audio, in (0, 1].
        max_hours: never more than this.
        seed: of the run.
    """
    if len(rows) == 0:
        raise DataError(
            "no utterances to cluster: the corpus has none in split 'train'; give it some and run stage=prepare again"
        )
    limit = samples(max_hours * 3600)
    total = sum(
        int(num_samples[_take(rows, np.arange(part.start, part.stop))].sum())
        for part in chunks(len(rows))
    )
    wanted = min(max(fraction * total, samples(MIN_HOURS * 3600)), limit)
    chosen = []
    held = 0
    for part in chunks(len(rows)):
        found = _take(
            rows, permute(np.arange(part.start, part.stop), len(rows), seed, "codebook sample")
        )
        ends = held + np.cumsum(num_samples[found])
        last = int(np.searchsorted(ends, wanted, side="left"))
        if last == len(found):
            chosen.append(found)
            held = int(ends[-1])
            continue
        # The utterance that reaches what is wanted is taken, unless it passes max_hours.
        too_much = ends[last] > limit and (held > 0 or last > 0)
        chosen.append(found[: last + (0 if too_much else 1)])
        break
    return np.sort(np.concatenate(chosen))


def _take(rows: NDArray[np.int64] | range, places: NDArray[np.int64]) -> NDArray[np.int64]:
    return places + rows.start if isinstance(rows, range) else rows[places]


def hours_of(num_frames: int, grid: FrameGrid) -> float:
    """So many hours of audio hold no more than so many frames."""
    return seconds(num_frames * grid.hop) / 3600


def gather(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: Extractor,
    *,
    scratch: Path,
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> NDArray[np.float32]:
    """Frames (N, D) float32 of utterances, in the order of `rows`, in one process; a memory map in
    folder `scratch` when they are many.
    """
    return in_memory(
        gather_share(
            corpus, rows, extractor, scratch=scratch, device=device, workers=workers
        ).frames
    )


def gather_share(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: Extractor,
    *,
    scratch: Path,
    memory_bytes: int = MEMORY_BYTES,
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> RankFrames:
    """This rank's share of the frames (N, D) float32 of utterances, in the order of `rows`.

    In memory when the share fits into `memory_bytes`, else in a file in folder `scratch`. A file
    that an interrupted run finished there is used again. Raises HubertPretrainError when the disk
    cannot hold it.
    """
    num_frames: NDArray[np.int64] = np.asarray(
        extractor.grid.num_frames(corpus.manifest.num_samples[rows])
    )  # type: ignore[arg-type]
    ends = np.cumsum(num_frames)
    total = int(ends[-1])
    share = share_of_frames(total)
    shape = (len(share), extractor.dim)
    frames: NDArray[np.float32] | FrameFile = np.empty((0, extractor.dim), dtype=np.float32)
    if 4 * shape[0] * shape[1] > memory_bytes:
        frames = FrameFile(scratch / f"{SCRATCH}.{distributed.rank()}", shape)
        if frames.is_complete:
            return RankFrames(frames, share.start, total)
    elif len(share):
        frames = np.empty(shape, dtype=np.float32)
    if len(share):
        # Whole groups that reach into the share; what lies outside it is another rank's.
        first = int(np.searchsorted(ends, share.start, side="right")) // GROUP_ROWS * GROUP_ROWS
        last = int(np.searchsorted(ends, share.stop, side="left")) + 1
        groups = [rows[start : start + GROUP_ROWS] for start in range(first, last, GROUP_ROWS)]
        position = int(ends[first] - num_frames[first])
        for parts in map_groups(
            corpus,
            groups,
            extractor,
            _to_numpy,
            device=device,
            workers=workers,
            what="frames for k-means",
        ):
            for part in parts:
                start = max(position, share.start)
                stop = min(position + len(part), share.stop)
                if start < stop:
                    _put(frames, start - share.start, part[start - position : stop - position])
                position += len(part)
    if isinstance(frames, FrameFile):
        frames.complete()
    return RankFrames(frames, share.start, total)


def remove_scratch(folder: Path) -> None:
    """Deletes what `gather_share` left of this rank's frames."""
    for path in folder.glob(f"{SCRATCH}.{distributed.rank()}*"):
        path.unlink()


def _put(frames: NDArray[np.float32] | FrameFile, start: int, part: NDArray[np.float32]) -> None:
    if isinstance(frames, FrameFile):
        frames.write(start, part)
    else:
        frames[start : start + len(part)] = part


def _to_numpy(frames: Tensor) -> NDArray[np.float32]:
    return np.asarray(frames.cpu().numpy(), dtype=np.float32)
