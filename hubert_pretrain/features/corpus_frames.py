"""Iteration over the frames of a corpus, in order and in bounded memory.

Rows are processed in groups. Utterances of a group are computed together where that is faster, and
the batches are a pure function of their lengths. So frames depend on their group and on nothing
else: not on workers, ranks, or an interruption. This makes targets byte-identical.

Tensor letters: S samples, T frames, N frames of all utterances of a batch, D width of a frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.features.extractor import FeatureExtractor, extract, plan_batches
from hubert_pretrain.frames import rate_hint
from hubert_pretrain.progress import progress

Result = TypeVar("Result")
Rows = NDArray[np.int64]

GROUP_ROWS = 64
"""Rows per group of `map_frames`."""


def map_frames(
    corpus: Corpus,
    rows: Rows,
    extractor: FeatureExtractor,
    function: Callable[[Tensor], Result],
    *,
    device: torch.device | str = "cpu",
    workers: int = 1,
    description: str = "frames",
    framewise: bool = False,
) -> Iterator[Result]:
    """Yields `function(frames)` for each row, in the order of `rows`.

    The groups are `GROUP_ROWS` consecutive rows each; the arguments are those of `map_groups`.
    """
    groups = [rows[start : start + GROUP_ROWS] for start in range(0, len(rows), GROUP_ROWS)]
    for results in map_groups(
        corpus,
        groups,
        extractor,
        function,
        device=device,
        workers=workers,
        description=description,
        framewise=framewise,
    ):
        yield from results


def map_groups(
    corpus: Corpus,
    groups: Sequence[Rows],
    extractor: FeatureExtractor,
    function: Callable[[Tensor], Result],
    *,
    device: torch.device | str = "cpu",
    workers: int = 1,
    description: str = "frames",
    framewise: bool = False,
) -> Iterator[list[Result]]:
    """Yields, for each group of rows in order, the list of `function(frames)` of its rows.

    Args:
        corpus: reads the audio.
        groups: rows of the manifest, e.g. the blocks of a target store.
        extractor: waveform -> frames, already on `device`.
        function: called with the frames (T, D) float32 of an utterance, on `device`; return
            something small.
        device: computes the frames. From a GPU only the results of `function` are copied back.
        workers: threads that decode and, on a CPU, compute. With several, let torch use one thread
            in each (`torch.set_num_threads(1)`).
        description: a word for the progress bar.
        framewise: `function` treats each frame independently and returns an array or tensor with
            one row per frame. It is then called with the concatenated frames (N, D) of several
            utterances, which is faster, and its result is split.

    Raises:
        DataError: audio cannot be read, or frames hold NaN or infinity; the message names the
            utterance.
    """
    job = _FrameJob(corpus, extractor, function, torch.device(device), framewise)
    with progress(sum(map(len, groups)), description) as advance:
        for results in job.run(groups, workers):
            yield results
            for _ in results:
                advance()


@dataclass(frozen=True)
class _FrameJob:
    corpus: Corpus
    extractor: FeatureExtractor
    function: Callable[[Tensor], Any]
    device: torch.device
    framewise: bool

    def run(self, groups: Sequence[Rows], workers: int) -> Iterator[list[Any]]:
        """Results of each group. At most two batches per thread are in flight, which bounds the
        memory.
        """
        # On a CPU the threads read and compute. On a GPU they only read, and this thread alone
        # starts the kernels: those of several threads would wait for each other.
        on_cpu = self.device.type == "cpu"
        work = self._read_and_compute if on_cpu else self._read
        batches = self._batches(groups)
        pending: deque[tuple[Rows, Rows, Future[Any]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="frames") as pool:
            try:
                for group in groups:
                    results: dict[int, Any] = {}
                    while len(results) < len(group):
                        self._fill(pending, batches, lambda rows: pool.submit(work, rows), workers)
                        positions, rows, future = pending.popleft()
                        done = future.result()
                        if not on_cpu:
                            done = self._compute(rows, done)
                        results.update(zip(map(int, positions), done, strict=True))
                    yield [results[position] for position in range(len(group))]
            finally:
                for _, _, future in pending:
                    future.cancel()

    @staticmethod
    def _fill(
        pending: deque[tuple[Rows, Rows, Future[Any]]],
        batches: Iterator[tuple[Rows, Rows]],
        submit: Callable[[Rows], Future[Any]],
        workers: int,
    ) -> None:
        """Submits batches until two per worker are in flight (and the one to wait for)."""
        while len(pending) <= 2 * workers:
            batch = next(batches, None)
            if batch is None:
                return
            positions, rows = batch
            pending.append((positions, rows, submit(rows)))

    def _batches(self, groups: Sequence[Rows]) -> Iterator[tuple[Rows, Rows]]:
        """(positions in the group, rows of the manifest) of every batch, group after group."""
        for group in groups:
            num_samples = self.corpus.manifest.num_samples[group]
            for positions in plan_batches(self.extractor, num_samples):
                yield positions, group[positions]

    def _read_and_compute(self, rows: Rows) -> list[Any]:
        return self._compute(rows, self._read(rows))

    def _read(self, rows: Rows) -> list[Tensor]:
        """The waveforms of a batch; for a GPU in pinned memory, which is copied asynchronously."""
        waveforms = [torch.from_numpy(self.corpus.read(int(row))) for row in rows]
        if self.device.type == "cpu":
            return waveforms
        return [waveform.pin_memory() for waveform in waveforms]

    def _compute(self, rows: Rows, waveforms: list[Tensor]) -> list[Any]:
        """The results of a batch, one per row."""
        counts = [self.extractor.grid.num_frames(len(waveform)) for waveform in waveforms]
        with torch.inference_mode():
            on_device = [waveform.to(self.device, non_blocking=True) for waveform in waveforms]
            frames = extract(self.extractor, on_device)  # (N, D)
            self._check_shape(frames, waveforms, sum(counts))
            utterances = [slice(*ends) for ends in pairwise([0, *accumulate(counts)])]
            # The sum is finite when all frames are, and needs no second copy of them.
            if not bool(frames.sum().isfinite()):
                self._check_finite(frames, utterances, rows)
            if not self.framewise:
                return [self.function(frames[utterance]) for utterance in utterances]
            results = self.function(frames)
            return [results[utterance] for utterance in utterances]

    def _check_shape(self, frames: Tensor, waveforms: list[Tensor], num_frames: int) -> None:
        expected = (num_frames, self.extractor.dim)
        if tuple(frames.shape) == expected:
            return
        lengths = [len(waveform) for waveform in waveforms]
        hint = rate_hint(len(frames), num_frames)
        raise ValueError(
            f"{type(self.extractor).__name__} made frames of shape {tuple(frames.shape)} of "
            f"{lengths} samples, not {expected}{'; ' if hint else ''}{hint}"
        )

    def _check_finite(self, frames: Tensor, utterances: list[slice], rows: Rows) -> None:
        """Raises DataError naming the first utterance and frame with NaN or infinity."""
        for row, position in zip(rows, utterances, strict=True):
            finite = frames[position].isfinite().all(dim=-1)
            if bool(finite.all()):
                continue
            utterance = self.corpus.manifest[int(row)]
            frame = int(finite.logical_not().nonzero()[0])
            kind = self.extractor.fingerprint().get("kind")
            raise DataError(
                f"{utterance.path}: frame {frame} of {len(finite)} of utterance {utterance.id!r} "
                f"holds NaN or infinity ({kind}); fix or remove the file, or use another checkpoint"
            )
