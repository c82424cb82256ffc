"""The utterances that a codebook is fitted on, their frames, and the memory budget for both.

Tensor letters: N frames, D width of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.clustering.frame_source import FrameFile, RankFrames, as_array, rank_range
from hubert_pretrain.clustering.memory import MAPPED
from hubert_pretrain.data.arrow_table import chunks
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import DataError
from hubert_pretrain.features.corpus_frames import map_groups
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.frames import FrameGrid, samples, seconds
from hubert_pretrain.seeds import permute

MIN_HOURS = 1.0
"""A fraction of a small corpus is not taken below this: one hour gives a codebook within 0.012 PNMI
of 100 hours, minutes do not. (PNMI: see docs/glossary.md.)"""
MEMORY_BYTES = 4_000_000_000
"""Larger samples are stored in a scratch file: 100 hours of 768-dimensional frames are 55 GB."""
FRAMES_PER_CLUSTER = 100
"""With fewer frames for each cluster, centroids follow single frames: the stage warns."""
SAMPLE = "codebook sample"
"""Name of the random permutation of the utterances."""
SCRATCH = "frames.scratch"
"""Name of the scratch files, to which the rank is appended."""
GROUP_ROWS = 16
"""Utterances per group (features/corpus_frames.py). Groups are the same on every rank, so a rank
may compute up to this many utterances at each end of its share that belong to its neighbour, and
discard them."""


def choose_rows(
    num_samples: NDArray[np.int64],
    rows: NDArray[np.int64] | range,
    *,
    fraction: float,
    max_hours: float,
    seed: int,
) -> NDArray[np.int64]:
    """A random subset of whole utterances, ascending: a pure function of its arguments.

    Utterances are taken in the order of a seeded permutation until they hold `fraction` of the
    audio, but at least MIN_HOURS (or everything). One that would pass `max_hours` is skipped and
    the next are tried; when none fits, the first is taken alone. Only the chosen rows are held in
    memory.

    Args:
        num_samples: length of every utterance of the manifest, in samples.
        rows: the rows to choose from, ascending; a range takes no memory.
        fraction: share of their audio, in (0, 1].
        max_hours: upper limit.
        seed: of the permutation.
    """
    if len(rows) == 0:
        raise DataError(
            "no utterances to cluster: the corpus has none in split 'train'; give it some and make "
            "it again with redo=prepare"
        )
    limit = samples(max_hours * 3600)
    total = 0
    shortest = limit + 1
    for part in chunks(len(rows)):
        lengths = num_samples[_take(rows, np.arange(part.start, part.stop))]
        total += int(lengths.sum())
        shortest = min(shortest, int(lengths.min()))
    goal = min(max(fraction * total, samples(MIN_HOURS * 3600)), limit)
    if shortest > limit:
        return _take(rows, permute(np.arange(1), len(rows), seed, SAMPLE))
    chosen = []
    num_chosen = 0  # samples
    for part in chunks(len(rows)):
        positions = permute(np.arange(part.start, part.stop), len(rows), seed, SAMPLE)
        candidates = _take(rows, positions)
        while num_chosen < goal:
            # Those that alone would pass the limit are skipped, and the others taken up to the
            # first that reaches the goal or would pass the limit.
            candidates = candidates[num_samples[candidates] <= limit - num_chosen]
            ends = num_chosen + np.cumsum(num_samples[candidates])
            reaching = int(np.searchsorted(ends, goal, side="left")) + 1
            fitting = int(np.searchsorted(ends, limit, side="right"))
            count = min(reaching, fitting)
            if count == 0:
                break
            chosen.append(candidates[:count])
            num_chosen = int(ends[count - 1])
            candidates = candidates[count:]
        if num_chosen >= goal or num_chosen + shortest > limit:
            break
    return np.sort(np.concatenate(chosen))


def _take(rows: NDArray[np.int64] | range, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return positions + rows.start if isinstance(rows, range) else rows[positions]


def hours_limit(max_hours: float, max_frames: int, grid: FrameGrid) -> float:
    """The smaller of two limits, in hours: of audio, and of frames (0: none)."""
    if not max_frames:
        return max_hours
    return min(max_hours, seconds(max_frames * grid.hop) / 3600)


@dataclass(frozen=True)
class SampleSize:
    """Size of the sample that codebooks are fitted on."""

    utterances: int
    frames: int
    hours: float
    speakers: int
    """Named speakers; 0 where the corpus names none."""

    @staticmethod
    def of(manifest: Manifest, rows: NDArray[np.int64], num_frames: int) -> SampleSize:
        """Counts the chosen rows of a manifest."""
        names = manifest.take("speaker", rows).unique().to_pylist()
        return SampleSize(
            utterances=len(rows),
            frames=num_frames,
            hours=round(seconds(int(manifest.num_samples[rows].sum())) / 3600, 4),
            speakers=len(set(names) - {""}),
        )

    def describe(self) -> str:
        """One line for the log."""
        audio = f"{self.hours:.1f} h" if self.hours >= 1 else f"{60 * self.hours:.1f} min"
        speakers = f" of {self.speakers} speakers" if self.speakers else ""
        return f"sample: {self.frames} frames, {audio}, {self.utterances} utterances{speakers}"

    def warning(self, n_clusters: int) -> str | None:
        """One line when the frames are too few for this many clusters."""
        if self.frames >= FRAMES_PER_CLUSTER * n_clusters:
            return None
        return (
            f"warning: {self.frames} frames for K={n_clusters} clusters are fewer than "
            f"{FRAMES_PER_CLUSTER} for each; raise clustering.fraction or clustering.max_hours, "
            "add audio, or lower clustering.n_clusters"
        )


# -- frames of the sample


def gather(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: FeatureExtractor,
    *,
    scratch: Path,
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> NDArray[np.float32]:
    """Frames (N, D) float32 of utterances, in the order of `rows`, in one process; a memory map in
    folder `scratch` when they need more than MEMORY_BYTES.
    """
    shard = gather_rank_frames(
        corpus, rows, extractor, scratch=scratch, device=device, workers=workers
    )
    return as_array(shard.frames)


def gather_rank_frames(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: FeatureExtractor,
    *,
    scratch: Path,
    memory_bytes: int = MEMORY_BYTES,
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> RankFrames:
    """This rank's share of the frames (N, D) float32 of utterances, in the order of `rows`.

    The share is held in memory if it fits into `memory_bytes`, else in a file in folder `scratch`.
    A file that an interrupted run completed there is used again.

    Raises HubertPretrainError when the disk is full.
    """
    num_frames: NDArray[np.int64] = np.asarray(
        extractor.grid.num_frames(corpus.manifest.num_samples[rows])  # type: ignore[arg-type]
    )
    ends = np.cumsum(num_frames)
    total = int(ends[-1])
    share = rank_range(total)
    shape = (len(share), extractor.dim)

    frames: NDArray[np.float32] | FrameFile
    if 4 * shape[0] * shape[1] <= memory_bytes:
        frames = np.empty(shape, dtype=np.float32)
    else:
        frames = FrameFile(scratch / f"{SCRATCH}.{distributed.rank()}", shape)
        if frames.is_complete:
            return RankFrames(frames, share.start, total)

    if len(share):
        # Whole groups that overlap the share; frames outside it belong to other ranks.
        first = int(np.searchsorted(ends, share.start, side="right")) // GROUP_ROWS * GROUP_ROWS
        last = int(np.searchsorted(ends, share.stop, side="left")) + 1
        groups = [rows[start : start + GROUP_ROWS] for start in range(first, last, GROUP_ROWS)]
        position = int(ends[first] - num_frames[first])
        for utterances in map_groups(
            corpus,
            groups,
            extractor,
            _to_numpy,
            device=device,
            workers=workers,
            description="frames for k-means",
        ):
            for utterance in utterances:
                start = max(position, share.start)
                stop = min(position + len(utterance), share.stop)
                if start < stop:
                    part = utterance[start - position : stop - position]
                    _store(frames, start - share.start, part)
                position += len(utterance)
    if isinstance(frames, FrameFile):
        frames.mark_complete()
    return RankFrames(frames, share.start, total)


def remove_scratch(folder: Path) -> None:
    """Deletes this rank's frames and the checkpoints of unfinished fits."""
    for path in folder.glob(f"{SCRATCH}.{distributed.rank()}*"):
        path.unlink()
    for path in (*folder.glob("*.state"), folder / MAPPED):
        path.unlink(missing_ok=True)  # another rank may have deleted it


def _store(frames: NDArray[np.float32] | FrameFile, start: int, part: NDArray[np.float32]) -> None:
    if isinstance(frames, FrameFile):
        frames.write(start, part)
    else:
        frames[start : start + len(part)] = part


def _to_numpy(frames: Tensor) -> NDArray[np.float32]:
    return np.asarray(frames.cpu().numpy(), dtype=np.float32)
